from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import make_tiny_model, make_tiny_tokenizer

from aft_harness.errors import AftError, TaskError, TrainingError
from aft_harness.harness.examples import Judging, TaskExamples, draw
from aft_harness.harness.judge import Judge, imported
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.tasks import Tasks

TOYS = str(Path(__file__).parents[1] / "toy_tasks")
SUITES = str(Path(__file__).parents[2] / "tasks")


@pytest.fixture(scope="module")
def lm() -> SteeredHFLM:
    return SteeredHFLM(pretrained=make_tiny_model("llama"), tokenizer=make_tiny_tokenizer())


def drawn(lm: SteeredHFLM, name: str, reward: str | None = None) -> TaskExamples:
    (found,) = draw([name], lm, source=Tasks([TOYS, SUITES]), judging=Judging(reward))
    return found


def judge_of(examples: TaskExamples) -> Judge:
    assert examples.judge is not None
    return examples.judge


def test_texts_are_judged_as_the_task_evaluates_them(lm: SteeredHFLM) -> None:
    examples = drawn(lm, "gsm8k_easy_gen")
    judge = judge_of(examples)
    assert judge.reward == "exact_match,last-number" and examples.kind == "judged"
    task = Tasks([SUITES]).leaves(["gsm8k_easy_gen"])["gsm8k_easy_gen"]
    answers = {doc["question"]: doc["answer"] for doc in task.training_docs()}
    for example in examples.train[:5]:
        answer = answers[example.question]
        texts = [f" so it is {answer}", f" {answer} and then 1000", " no number", f" = {answer}."]
        assert judge.rewards(example.document, texts) == [1.0, 0.0, 0.0, 1.0]
        assert judge.settings(example.document)["max_gen_toks"] == 32


def test_a_function_judges(lm: SteeredHFLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scales.py").write_text(
        "def length(document, text): return len(text) / len(document['question'])\n"
        "def word(document, text): return 'good'\n"
        "def endless(document, text): return float('inf')\n"
        "def broken(document, text): return document['nothing']\n"
        "value = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    examples = drawn(lm, "toy_text", "scales:length")
    example = examples.train[0]
    assert judge_of(examples).rewards(example.document, ["", example.question]) == [0.0, 1.0]
    assert str(tmp_path) not in sys.path
    for name, words in (("word", "'good'"), ("endless", "inf"), ("broken", "KeyError")):
        judge = judge_of(drawn(lm, "toy_text", f"scales:{name}"))
        with pytest.raises(TrainingError, match=words):
            judge.rewards(example.document, ["text"])
    for name in ("scales:nothing", "scales:value", "no_such_module:f", "scales:", ":f"):
        with pytest.raises(TrainingError, match="reward"):
            imported(name)


@pytest.mark.parametrize(
    ("task", "reward", "words"),
    [
        ("toy_choice", None, "multiple_choice"),
        ("toy_text", "bleu", "no metric 'bleu'; it has exact_match"),
        ("toy_text", "exact_match,strict", "no filter 'strict'"),
    ],
)
def test_what_cannot_be_judged_is_refused(lm: SteeredHFLM, task: str, reward: str | None, words: str) -> None:
    with pytest.raises(TaskError, match=words) as caught:
        drawn(lm, task, reward)
    assert "\n" not in str(caught.value)


def test_a_metric_without_numbers_is_refused(lm: SteeredHFLM, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = drawn(lm, "toy_text")
    judge, document = judge_of(examples), examples.train[0].document
    task: Any = judge._task
    monkeypatch.setattr(task, "process_results", lambda doc, results: {"exact_match": (1, 2)})
    with pytest.raises(TaskError, match="gives no number"):
        judge.rewards(document, ["text"])
    monkeypatch.setattr(task, "process_results", lambda doc, results: 1 / 0)
    with pytest.raises(AftError, match="ZeroDivisionError"):
        judge.rewards(document, ["text"])


def test_less_is_better_is_turned_round(lm: SteeredHFLM, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Tasks([TOYS]).leaves(["toy_text"])["toy_text"]
    monkeypatch.setattr(task, "higher_is_better", lambda: {"exact_match": False})
    judge = Judge(task, "toy_text")
    examples = drawn(lm, "toy_text")
    judge.learn_of("x", judge_of(examples)._asked[examples.train[0].document])
    monkeypatch.setattr(task, "process_results", lambda doc, results: {"exact_match": 2.0})
    assert judge.rewards("x", ["text"]) == [-2.0]
