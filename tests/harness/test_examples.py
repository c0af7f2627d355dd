from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from aft_harness.boosters.documents import text_hash
from aft_harness.errors import TaskError
from aft_harness.harness.examples import Prompting, TaskExamples, TaskSelection, load_tasks, task_examples
from aft_harness.harness.model import SteeredHFLM

TOYS = str(Path(__file__).parents[1] / "toy_tasks")
CHAT = (
    "{% for m in messages %}<{{m['role']}}>{{m['content']}}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def lm(tiny_model: Any, tiny_tokenizer: Any) -> SteeredHFLM:
    tiny_tokenizer.chat_template = CHAT
    return SteeredHFLM(pretrained=tiny_model("llama", max_position_embeddings=2048), tokenizer=tiny_tokenizer)


class Recorder(LM):
    """Keeps the requests that lm-eval itself makes for a task."""

    def __init__(self, lm: SteeredHFLM) -> None:
        super().__init__()
        self.requests: list[tuple[str, str]] = []
        self.lm = lm
        self.apply_chat_template = lm.apply_chat_template

    @property
    def tokenizer_name(self) -> str:
        return "toy"

    def loglikelihood(self, requests: Any, **_: Any) -> Any:
        self.requests += [request.args for request in requests]
        return [(0.0, False) for _ in requests]

    def loglikelihood_rolling(self, requests: Any, **_: Any) -> Any:
        raise NotImplementedError

    def generate_until(self, requests: Any, **_: Any) -> Any:
        self.requests += [request.args for request in requests]
        return ["" for _ in requests]

    def chat_template(self, chat_template: Any = False) -> str:
        return CHAT


def made(name: str, lm: SteeredHFLM, prompting: Prompting | None = None, **selection: Any) -> TaskExamples:
    ((chosen, task),) = load_tasks([TaskSelection(name, **selection)], [TOYS])
    return task_examples(chosen, task, prompting or Prompting(), lm)


@pytest.mark.parametrize(
    "prompting",
    [
        Prompting(),
        Prompting(num_fewshot=3),
        Prompting(num_fewshot=2, apply_chat_template=True, system_instruction="Be short."),
        Prompting(num_fewshot=2, apply_chat_template=True, fewshot_as_multiturn=False),
    ],
    ids=["zero-shot", "few-shot", "chat", "chat in one turn"],
)
def test_training_documents_are_formatted_as_lm_eval_formats_them(lm: SteeredHFLM, prompting: Prompting) -> None:
    # The oracle is lm-eval, evaluating a task that differs in its test split only: the training rows. Asked without
    # the row that stands in the real test split, which training drops.
    recorder = Recorder(lm)
    simple_evaluate(
        model=recorder,
        tasks=["toy_choice_of_train"],
        task_manager=TaskManager(include_path=TOYS),
        num_fewshot=prompting.num_fewshot,
        apply_chat_template=prompting.apply_chat_template,
        system_instruction=prompting.system_instruction,
        fewshot_as_multiturn=prompting.apply_chat_template and prompting.fewshot_as_multiturn is not False,
        samples={"toy_choice_of_train": [n for n in range(24) if n != 3]},
        bootstrap_iters=0,
    )
    expected = {lm.encode(*request) for request in recorder.requests}
    examples = made("toy_choice", lm, prompting)
    assert {request for example in examples.train for request in example.requests} == expected
    assert len(examples.train) == 23 and len(expected) == 23 * 3


def test_a_document_never_stands_in_its_own_shots(lm: SteeredHFLM) -> None:
    examples = made("toy_choice", lm, Prompting(num_fewshot=20))
    for example in examples.train:
        text = lm.tok_decode(list(example.requests[0].context))
        questions = [line for line in text.split("\n\n") if line.casefold().startswith("number")]
        own = questions[-1].removesuffix(" Answer:")
        assert len(questions) == 21 and sum(question.startswith(own) for question in questions) == 1


def test_documents_that_the_evaluation_holds_are_dropped_and_counted(lm: SteeredHFLM) -> None:
    examples = made("toy_choice", lm)
    tests = {text_hash(doc["question"]) for doc in load_tasks([TaskSelection("toy_choice")], [TOYS])[0][1].test_docs()}
    assert examples.overlapping == 1 and len(examples.train) == 23
    assert tests.isdisjoint(example.document for example in examples.train)


def test_development_documents_are_carved_from_the_training_split(lm: SteeredHFLM) -> None:
    examples = made("toy_choice", lm, dev_docs=7, limit=10)
    assert (len(examples.train), len(examples.development)) == (10, 7)
    assert not {e.document for e in examples.train} & {e.document for e in examples.development}
    again = made("toy_choice", lm, dev_docs=7, limit=10)
    assert [e.document for e in again.train] == [e.document for e in examples.train]
    other = load_tasks([TaskSelection("toy_choice", dev_docs=7, limit=10)], [TOYS])[0]
    seeded = task_examples(*other, Prompting(), lm, split_seed=1)
    assert {e.document for e in seeded.development} != {e.document for e in examples.development}
    # A smaller limit is a part of a larger one: curves over the number of examples are nested.
    fewer = made("toy_choice", lm, dev_docs=7, limit=4)
    assert {e.document for e in fewer.train} <= {e.document for e in examples.train}


def test_gold_of_every_form(lm: SteeredHFLM) -> None:
    by_index = {e.document: e.gold for e in made("toy_choice", lm).train}
    assert set(by_index.values()) == {(0,), (1,), (2,)}
    assert {e.document: e.gold for e in made("toy_named_gold", lm).train} == by_index
    for example in made("toy_two_right", lm).train:
        assert example.gold == (by_index[example.document][0], (by_index[example.document][0] + 1) % 3)


def test_contexts_may_differ_and_share_the_continuation(lm: SteeredHFLM) -> None:
    for example in made("toy_blanks", lm).train:
        assert len({request.continuation for request in example.requests}) == 1
        assert len({request.context for request in example.requests}) == 3
        assert lm.tok_decode(list(example.requests[0].continuation)).strip() == "was there"


def test_unconditional_requests_of_mutual_information_are_left_out(lm: SteeredHFLM) -> None:
    assert all(len(example.requests) == 3 for example in made("toy_mutual", lm).train)


def test_target_texts_follow_the_prompt_after_the_delimiter(lm: SteeredHFLM) -> None:
    examples = made("toy_text", lm)
    assert examples.kind == "text"
    for example in examples.train:
        (request,) = example.requests
        whole = lm.tok_decode(list(request.context + request.continuation))
        assert whole.endswith("Answer: " + example.choices[0]) and example.gold == (0,)


def test_a_task_without_a_training_split_needs_a_slice(lm: SteeredHFLM) -> None:
    with pytest.raises(
        TaskError, match=r"toy_no_train has no training split; .*--train-docs SPLIT\[a:b\].*splits: train"
    ):
        made("toy_no_train", lm)
    examples = made("toy_no_train", lm, train_docs="test[0:5]")
    assert len(examples.train) == 5 and examples.split == "test[0:5]" and examples.overlapping == 0


def test_a_task_that_evaluates_its_training_split_is_refused_with_the_way_out(lm: SteeredHFLM) -> None:
    with pytest.raises(TaskError, match=r"none of the 12 documents .*--train-docs"):
        made("toy_train_is_test", lm)


@pytest.mark.parametrize(
    ("name", "selection", "reason"),
    [
        ("toy_choise", {}, "did you mean .*toy_choice"),
        ("nothing_like_it_zzz", {}, "lm_eval ls tasks"),
        ("toy_choice", {"train_docs": "test[5"}, "not of the form"),
        ("toy_choice", {"train_docs": "dev[0:5]"}, "no split 'dev'; it has train, validation, test"),
        ("toy_choice", {"train_docs": "test[90:95]"}, "is empty; the split has 12 rows"),
        ("toy_choice", {"dev_docs": 99}, "leaves no training documents"),
        ("toy_rolling", {}, "no answer to train on"),
    ],
)
def test_bad_selections_are_one_clear_line(lm: SteeredHFLM, name: str, selection: dict[str, Any], reason: str) -> None:
    with pytest.raises(TaskError, match=reason) as caught:
        made(name, lm, **selection)
    assert "\n" not in str(caught.value)


def test_groups_unfold_and_folders_are_checked() -> None:
    loaded = load_tasks([TaskSelection("toy_group", limit=3)], [TOYS])
    assert [(selection.name, selection.limit) for selection, _ in loaded] == [("toy_choice", 3), ("toy_text", 3)]
    with pytest.raises(TaskError, match="--include-path nowhere"):
        load_tasks([TaskSelection("toy_choice")], ["nowhere"])


@pytest.mark.parametrize(
    ("task", "field", "evaluated"),
    [("arc_easy", "question", "test"), ("hellaswag", "ctx", "validation"), ("gsm8k", "question", "test")],
)
def test_real_tasks_drop_the_rows_that_are_evaluated(
    real_data: Path, lm: SteeredHFLM, task: str, field: str, evaluated: str
) -> None:
    ((selection, loaded),) = load_tasks([TaskSelection(task, limit=20)])
    tests = set(loaded.dataset[evaluated][field])
    rows_in_both = sum(text in tests for text in loaded.dataset["train"][field])
    examples = task_examples(selection, loaded, Prompting(num_fewshot=0), lm)
    assert len(examples.train) == 20 and examples.overlapping == rows_in_both
    assert {"arc_easy": True, "hellaswag": True, "gsm8k": False}[task] == (rows_in_both > 0)
