"""What is learned is what a task shows as the right answer, never what only its scorer needs."""

from __future__ import annotations

from typing import Any

import pytest
from harness_cases import TOYS, drawn

from aft_harness.errors import TaskError
from aft_harness.harness.gold import Gold
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.tasks import Tasks


@pytest.fixture(scope="module")
def lm(tiny_model: Any, tiny_tokenizer: Any) -> SteeredHFLM:
    return SteeredHFLM(pretrained=tiny_model("llama", max_position_embeddings=2048), tokenizer=tiny_tokenizer)


def learned(name: str, lm: SteeredHFLM, **selection: Any) -> list[tuple[dict[str, Any], str]]:
    """The documents of a toy task with what is learned of each."""
    docs = {doc["question"]: doc for doc in Tasks([TOYS]).leaves([name])[name].dataset["train"]}
    return [(docs[example.question], example.choices[0]) for example in drawn(name, lm, **selection).train]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("toy_text", lambda doc: doc["answer"]),
        ("toy_shown_answer", lambda doc: f"{doc['answer']} [DONE]"),
        ("toy_worked", lambda doc: doc["sentence"]),
        ("toy_shot_target", lambda doc: f"It is {doc['answer']}."),
        ("toy_wordings", lambda doc: doc["choices"][0]),
        # Its few-shot prompt holds the answer, which is another prompt than the one that is asked.
        ("toy_own_shots", lambda doc: doc["answer"]),
    ],
)
def test_the_text_is_the_one_that_few_shot_prompts_show(name: str, expected: Any, lm: SteeredHFLM) -> None:
    found = learned(name, lm)
    assert len(found) == 23
    for doc, text in found:
        assert text == expected(doc)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("toy_constant", "its target is '0' for every document"),
        ("toy_unit_tests", "it runs the generated code"),
        ("toy_mapping", "its target is not text but {'text': "),
    ],
)
def test_what_only_a_scorer_needs_is_refused_with_the_way_out(name: str, reason: str, lm: SteeredHFLM) -> None:
    with pytest.raises(TaskError, match=reason) as caught:
        drawn(name, lm)
    message = str(caught.value)
    assert "target field" in message and "sentence" in message and "\n" not in message
    assert all(text == doc["sentence"] for doc, text in learned(name, lm, target_field="sentence"))


def test_a_named_field_holds_text(lm: SteeredHFLM) -> None:
    assert all(text == str(doc["gold"]) for doc, text in learned("toy_text", lm, target_field="gold"))
    record = drawn("toy_text", lm, target_field="sentence").record()
    assert record.target_field == "sentence"
    assert "target_field" not in drawn("toy_text", lm).record().model_dump(exclude_unset=True)
    for name, field, reason in (
        ("toy_text", "both", "field both is not text but"),
        ("toy_text", "answr", "have no field 'answr'; they have .*answer"),
        ("toy_choice", "answer", "ranks choices"),
    ):
        with pytest.raises(TaskError, match=reason):
            drawn(name, lm, target_field=field)


def test_a_text_that_looks_like_a_list_but_is_none_is_learned() -> None:
    task = Tasks([TOYS]).leaves(["toy_text"])["toy_text"]
    gold = Gold(task, "toy_text")
    for answer in ("{x}", "[see below]", "{", "[1, 2", "f(x) = {x}"):
        assert gold.text({"answer": answer}) == answer
    with pytest.raises(TaskError, match="not text"):
        gold.text({"answer": "[[1, 2], [3]]"})
