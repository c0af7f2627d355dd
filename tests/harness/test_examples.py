from __future__ import annotations

from typing import Any

import pytest
from harness_cases import TOYS, drawn
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from aft_harness.boosters.provenance import TaskRecord
from aft_harness.errors import AftError
from aft_harness.harness.examples import draw
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.selection import PromptFormat, TaskSelection
from aft_harness.harness.tasks import Tasks

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


@pytest.mark.parametrize(
    "prompt_format",
    [
        PromptFormat(),
        PromptFormat(num_fewshot=3),
        PromptFormat(num_fewshot=2, apply_chat_template=True, system_instruction="Be short."),
        PromptFormat(num_fewshot=2, apply_chat_template=True, fewshot_as_multiturn=False),
    ],
    ids=["zero-shot", "few-shot", "chat", "chat in one turn"],
)
def test_training_documents_are_formatted_as_lm_eval_formats_them(lm: SteeredHFLM, prompt_format: PromptFormat) -> None:
    # The oracle is lm-eval, evaluating a task that differs in its test split only: the training rows. Asked without
    # the row that stands in the real test split, which training drops.
    recorder = Recorder(lm)
    simple_evaluate(
        model=recorder,
        tasks=["toy_choice_of_train"],
        task_manager=TaskManager(include_path=TOYS),
        num_fewshot=prompt_format.num_fewshot,
        apply_chat_template=prompt_format.apply_chat_template,
        system_instruction=prompt_format.system_instruction,
        fewshot_as_multiturn=prompt_format.apply_chat_template and prompt_format.fewshot_as_multiturn is not False,
        samples={"toy_choice_of_train": [n for n in range(24) if n != 3]},
        bootstrap_iters=0,
    )
    expected = {lm.encode(*request) for request in recorder.requests}
    examples = drawn("toy_choice", lm, prompt_format)
    assert {request for example in examples.train for request in example.requests} == expected
    assert len(examples.train) == 23 and len(expected) == 23 * 3


def test_a_document_never_stands_in_its_own_shots(lm: SteeredHFLM) -> None:
    examples = drawn("toy_choice", lm, PromptFormat(num_fewshot=20))
    for example in examples.train:
        text = lm.tok_decode(list(example.requests[0].context))
        questions = [line for line in text.split("\n\n") if line.casefold().startswith("number")]
        own = questions[-1].removesuffix(" Answer:")
        assert len(questions) == 21 and sum(question.startswith(own) for question in questions) == 1


def test_gold_of_every_form(lm: SteeredHFLM) -> None:
    by_index = {e.document: e.gold for e in drawn("toy_choice", lm).train}
    assert set(by_index.values()) == {(0,), (1,), (2,)}
    assert {e.document: e.gold for e in drawn("toy_named_gold", lm).train} == by_index
    for example in drawn("toy_two_right", lm).train:
        assert example.gold == (by_index[example.document][0], (by_index[example.document][0] + 1) % 3)


def test_contexts_may_differ_and_share_the_continuation(lm: SteeredHFLM) -> None:
    for example in drawn("toy_blanks", lm).train:
        assert len({request.continuation for request in example.requests}) == 1
        assert len({request.context for request in example.requests}) == 3
        assert lm.tok_decode(list(example.requests[0].continuation)).strip() == "was there"


def test_unconditional_requests_of_mutual_information_are_left_out(lm: SteeredHFLM) -> None:
    assert all(len(example.requests) == 3 for example in drawn("toy_mutual", lm).train)


def test_target_texts_follow_the_prompt_after_the_delimiter(lm: SteeredHFLM) -> None:
    examples = drawn("toy_text", lm)
    assert examples.kind == "text"
    for example in examples.train:
        (request,) = example.requests
        whole = lm.tok_decode(list(request.context + request.continuation))
        assert whole.endswith("Answer: " + example.choices[0]) and example.gold == (0,)


@pytest.mark.parametrize(
    ("name", "selection", "reason"),
    [
        ("toy_choise", {}, "did you mean .*toy_choice"),
        ("nothing_like_it_zzz", {}, "lm_eval ls tasks"),
        ("toy_choice", {"train_docs": "test[5"}, "does not name rows of a split"),
        ("toy_choice", {"train_docs": "dev[0:5]"}, "no split 'dev'; it has train, validation, test"),
        ("toy_choice", {"train_docs": "test[90:95]"}, "is empty; the split has 12 rows"),
        ("toy_choice", {"dev_docs": 99}, "99 development documents leave none of 23 for training"),
        ("toy_rolling", {}, "no answer to train on"),
    ],
)
def test_bad_selections_are_one_clear_line(lm: SteeredHFLM, name: str, selection: dict[str, Any], reason: str) -> None:
    with pytest.raises(AftError, match=reason) as caught:
        drawn(name, lm, **selection)
    assert "\n" not in str(caught.value)


def test_gold_and_prompt_come_from_one_document_when_choices_are_shuffled(lm: SteeredHFLM) -> None:
    task = Tasks([TOYS]).leaves(["toy_shuffled"])["toy_shuffled"]
    right = {doc["question"]: doc["answer"] for doc in task.dataset["train"]}
    orders = set()
    for _ in range(3):
        for example in drawn("toy_shuffled", lm).train:
            texts = [lm.tok_decode(list(request.continuation)).strip() for request in example.requests]
            assert texts == list(example.choices)
            assert texts[example.gold[0]] == right[example.question]
            orders.add((example.question, example.choices))
    assert len(orders) > len(right), "the toy shuffles"


def test_a_summary_and_a_record_say_what_was_drawn(lm: SteeredHFLM) -> None:
    examples = drawn("toy_choice", lm, PromptFormat(num_fewshot=2), dev_docs=4, limit=10, weight=0.5)
    assert examples.record() == TaskRecord(
        task="toy_choice",
        version="1.0",
        split="train[0:24]",
        n_train=10,
        n_development=4,
        num_fewshot=2,
        overlapping_dropped=1,
        goldless_dropped=0,
        weight=0.5,
    )
    assert str(examples) == (
        "toy_choice: 10 training documents and 4 development documents from train[0:24], "
        "1 dropped (same question in the evaluated split)"
    )
    alone = drawn("toy_choice", lm, dev_docs=4, development_only=True)
    assert not alone.train and str(alone).startswith("toy_choice: 4 development documents from train[0:24], 1 dropped")


def test_several_selections_are_drawn_with_one_source(lm: SteeredHFLM) -> None:
    found = draw(["toy_choice", TaskSelection("toy_text", limit=3)], lm, source=Tasks([TOYS]))
    assert [(each.task, each.kind, len(each.train)) for each in found] == [
        ("toy_choice", "choice", 23),
        ("toy_text", "text", 3),
    ]
    assert all(each.prompt_format == PromptFormat() for each in found)
