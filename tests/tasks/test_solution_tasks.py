"""The real GSM8K and HumanEval questions in forms of our own: fair choices, and bits that a plain loop counts too."""

from __future__ import annotations

import importlib.util
import math
import random
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lm_eval.evaluator import simple_evaluate

from aft_harness.harness.examples import draw
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.selection import TaskSelection
from aft_harness.harness.suites import folder
from aft_harness.harness.tasks import Tasks

ANSWER = "She has 20*2=$<<20*2=40>>40.\nWith 2.5 more, 40+2.5=<<40+2.5=42.50>>42.5\nIn all 1,040\n#### 1,040"


@pytest.fixture(scope="module")
def forms() -> ModuleType:
    spec = importlib.util.spec_from_file_location("forms", folder() / "gsm8k_forms" / "forms.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def lm(tiny_model: Any, tiny_tokenizer: Any) -> SteeredHFLM:
    return SteeredHFLM(pretrained=tiny_model("llama", max_position_embeddings=2048), tokenizer=tiny_tokenizer)


def test_a_solution_reads_as_a_reader_would_write_it(forms: ModuleType) -> None:
    assert forms.solution(ANSWER) == "She has 20*2=$40.\nWith 2.5 more, 40+2.5=42.5\nIn all 1,040\nThe answer is 1040."


def test_wrong_answers_are_steps_of_the_solution_first(forms: ModuleType) -> None:
    wrong = forms.wrong_answers(ANSWER, random.Random(0))
    assert len(wrong) == 3 and {"40", "42.5"} < set(wrong)
    lone = forms.wrong_answers("2+5=<<2+5=7>>7\n#### 7", random.Random(0))
    assert len({float(number) for number in lone} - {7.0}) == 3


def test_every_question_has_four_different_numbers_and_one_is_right(forms: ModuleType, real_data: Path) -> None:
    rows = list(Tasks([folder()]).leaves(["gsm8k_choice"])["gsm8k_choice"].eval_docs)
    assert len(rows) == 1319
    for row in rows:
        numbers = [float(number) for number in row["choices"]]
        assert len(set(numbers)) == 4
        assert numbers[row["gold"]] == float(row["answer"].rsplit("#### ", 1)[1].replace(",", ""))
    assert set(Counter(row["gold"] for row in rows[:1316]).values()) == {329}
    # Neither the size nor the length of a number gives the answer away.
    ranks = Counter(sorted(map(float, row["choices"])).index(float(row["choices"][row["gold"]])) for row in rows)
    assert max(ranks.values()) < 0.35 * len(rows)
    longest = sum(max(range(4), key=lambda place: len(row["choices"][place])) == row["gold"] for row in rows)
    assert longest < 0.35 * len(rows)


@pytest.mark.parametrize("name", ["gsm8k_solution", "humaneval_solution"])
def test_bits_per_byte_are_those_of_a_plain_loop(name: str, lm: SteeredHFLM, real_data: Path) -> None:
    manager = Tasks([folder()]).manager
    results = simple_evaluate(model=lm, tasks=[name], task_manager=manager, limit=2, bootstrap_iters=0)
    for line in results["samples"][name]:
        context, target = line["arguments"][0]
        whole = lm.tok_encode(context + target)
        tokens = torch.tensor([whole[-(lm.max_length + 1) :]])
        count = len(whole) - len(lm.tok_encode(context))
        with torch.no_grad():
            logprobs = lm.model(tokens[:, :-1]).logits.log_softmax(-1)[0]
        own = logprobs[-count:].gather(1, tokens[0, -count:, None]).sum().item()
        assert line["bits_per_byte"] == pytest.approx(-own / math.log(2) / len(target.strip(" ").encode()), rel=2e-2)
    mean = sum(line["bits_per_byte"] for line in results["samples"][name]) / 2
    assert results["results"][name]["bits_per_byte,none"] == pytest.approx(mean)


def test_solutions_are_examples_to_learn_from(lm: SteeredHFLM, real_data: Path) -> None:
    selections = [TaskSelection("gsm8k_solution", 3), TaskSelection("humaneval_solution", 3, train_docs="test[0:100]")]
    maths, code = draw(selections, lm, source=Tasks([folder()]))
    for drawn, words in ((maths, "The answer is"), (code, "return")):
        assert drawn.kind == "text" and len(drawn.train) == 3
        assert all(words in example.choices[0] for example in drawn.train)
