"""Pairs as examples: what the model reads, who is held out, and what it cannot read."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest

from aft_harness.boosters.documents import text_hash
from aft_harness.errors import TaskError
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.pair_examples import draw_pairs, evaluated_pairs
from aft_harness.harness.pair_sources import read
from aft_harness.harness.selection import PairSelection, PromptFormat

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('Unknown role ' + message.role) }}"
    "{% endif %}[{{ message.role }}] {{ message.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture(scope="module")
def plain(tiny_model: Any, tiny_tokenizer: Any) -> SteeredHFLM:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = None
    return SteeredHFLM(pretrained=tiny_model("llama"), tokenizer=tokenizer)


@pytest.fixture(scope="module")
def lm(tiny_model: Any, tiny_tokenizer: Any) -> SteeredHFLM:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = TEMPLATE
    return SteeredHFLM(pretrained=tiny_model("llama"), tokenizer=tokenizer)


def chat(question: str, *answers: str, system: str | None = None) -> dict[str, Any]:
    prompt = [{"role": "system", "content": system}] if system else []
    texts = [[{"role": "assistant", "content": answer}] for answer in answers]
    fields = ("chosen", "rejected") if len(answers) > 1 else ("completion",)
    return {"prompt": [*prompt, {"role": "user", "content": question}], **dict(zip(fields, texts, strict=True))}


def text(number: int, **changes: Any) -> dict[str, Any]:
    return {"prompt": f"Number {number}:", "chosen": f" yes {number}", "rejected": " no", **changes}


def drawn(lm: Any, rows: Any, prompt_format: PromptFormat | None = None, seed: int = 0, **selection: Any) -> Any:
    return draw_pairs(read(rows), PairSelection(rows, **selection), lm, prompt_format, seed)


def whole(lm: Any, request: Any) -> str:
    return str(lm.tokenizer.decode([*request.context, *request.continuation]))


def test_chat_goes_through_the_template_up_to_the_token_that_ends_the_answer(lm: SteeredHFLM) -> None:
    (example,) = drawn(lm, [chat("What?", "A cat", "Well, a cat", system="Be brief.")], held_out=0).examples.train
    start = "[system] Be brief.<eos>\n[user] What?<eos>\n[assistant] "
    assert example.shown == start and example.choices == ("A cat", "Well, a cat") and example.gold == (0,)
    assert [whole(lm, request) for request in example.requests] == [
        f"{start}A cat<eos>",
        f"{start}Well, a cat<eos>",
    ]
    assert (example.question, example.document) == ("What?", text_hash("What?"))
    # lm-eval counts the last white space of a prompt as part of what follows.
    assert lm.tokenizer.decode(example.requests[0].continuation) == " A cat<eos>"


def test_text_is_read_as_it_is_and_ends(plain: SteeredHFLM) -> None:
    found = drawn(plain, [text(1)], held_out=0).examples
    assert [whole(plain, request) for request in found.train[0].requests] == [
        "Number 1: yes 1<eos>",
        "Number 1: no<eos>",
    ]
    assert not found.prompt_format.apply_chat_template and found.kind == "pair"
    implicit = drawn(plain, [{"chosen": "Blue.", "rejected": "Black."}], held_out=0).examples.train[0]
    assert implicit.requests[0].context == (plain.prefix_token_id,)
    assert plain.tokenizer.decode(implicit.requests[0].continuation) == "Blue.<eos>"


def test_text_becomes_messages_where_the_chat_template_is_asked_for(lm: SteeredHFLM) -> None:
    asked = PromptFormat(apply_chat_template=True, system_instruction="Be brief.")
    row = {"prompt": "What?", "chosen": "A cat", "rejected": "Well, a cat"}
    as_text = drawn(lm, [row], asked, held_out=0).examples
    as_chat = drawn(lm, [chat("What?", "A cat", "Well, a cat", system="Be brief.")], held_out=0).examples
    assert as_text.train[0].requests == as_chat.train[0].requests
    assert as_text.prompt_format.apply_chat_template and as_chat.prompt_format.apply_chat_template


def test_pairs_have_three_roles_and_no_prompt_has_two(plain: SteeredHFLM) -> None:
    rows = [text(number, chosen=f" yes {again}") for number in range(12) for again in range(2)]
    found = drawn(plain, rows, held_out=6, dev_docs=4, limit=10)
    train, development = found.examples.train, found.examples.development
    assert found.held_out is not None and len(found.held_out.eval_docs) == found.examples.held_out == 3
    roles = [{example.question for example in part} for part in (train, development)]
    roles.append({doc["question"] for doc in found.held_out.eval_docs})
    assert (len(train), len(development), [len(role) for role in roles]) == (10, 4, [5, 2, 3])
    assert len(set.union(*roles)) == 10
    again = drawn(plain, rows[::-1], held_out=6, dev_docs=4, limit=10)  # a file's order decides nothing
    assert {example.question for example in again.examples.train} == roles[0]
    other = drawn(plain, rows, seed=1, held_out=6, dev_docs=4, limit=10)
    assert {example.question for example in other.examples.train} != roles[0]
    record = found.examples.record()
    assert (record.task, record.split, record.n_train, record.n_development, record.n_held_out) == (
        ("pairs", "pairs[0:24]", 10, 4, 3)
    )
    shown = "10 training documents, 4 development documents and 3 held-out documents from pairs[0:24]"
    assert shown in str(found.examples)


def test_a_fifth_is_held_out_where_nothing_is_said(plain: SteeredHFLM, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [text(number) for number in range(20)]
    assert drawn(plain, rows).examples.held_out == 4 and len(drawn(plain, rows).examples.train) == 16
    monkeypatch.setattr("aft_harness.harness.pair_examples.HELD_OUT_PAIRS", 3)
    assert drawn(plain, rows).examples.held_out == 3
    assert drawn(plain, rows, held_out=0).held_out is None
    with pytest.raises(TaskError, match="pairs: 15 held-out pairs and 5 development pairs leave none of 20"):
        drawn(plain, rows, held_out=15, dev_docs=5)
    with pytest.raises(TaskError, match="pairs: 30 held-out pairs leave none of 20 for training"):
        drawn(plain, rows, held_out=30)


def test_what_is_evaluated_is_what_would_be_learned(lm: SteeredHFLM) -> None:
    rows = [chat(f"What is {number}?", "A cat", "Well, a cat") for number in (1, 2)]
    task = evaluated_pairs(read(rows), lm)
    # Whatever an evaluation says of templates and few-shot examples.
    task.build_all_requests(apply_chat_template=True, chat_template=lm.apply_chat_template, system_instruction="x")
    found = [lm.encode(*instance.args) for instance in task.instances]
    learned = drawn(lm, rows, held_out=0).examples.train
    by_question = {example.question: example.requests for example in learned}
    assert found == [*by_question["What is 1?"], *by_question["What is 2?"]]


def test_of_pairs_with_one_prompt_the_first_is_evaluated(plain: SteeredHFLM, caplog: pytest.LogCaptureFixture) -> None:
    rows = [text(1), text(2), text(3), text(1, chosen=" other")]
    task = evaluated_pairs(read(rows), plain)
    assert [doc["texts"][0] for doc in task.eval_docs] == [" yes 1", " yes 2", " yes 3"]
    assert "pairs: 1 pairs left out (same prompt as an earlier pair)" in caplog.text


def test_chosen_texts_alone_are_answers(plain: SteeredHFLM) -> None:
    found = drawn(plain, [{"prompt": "Number 1:", "completion": " one"}], held_out=0).examples
    assert found.kind == "text" and len(found.train[0].requests) == 1


@pytest.mark.parametrize(
    ("row", "prompt_format", "reason"),
    [
        (text(1, chosen=" a" * 400), None, r"number 1: prompt and chosen text have \d+ tokens, more than .* 256"),
        (text(1, rejected=" a" * 400), None, r"number 1: prompt and rejected text have \d+ tokens"),
        (text(1), PromptFormat(system_instruction="x"), "number 1: a system message needs chat messages"),
        (chat("a", "b"), PromptFormat(system_instruction="x"), None),
        (chat("a", "b", system="c"), PromptFormat(system_instruction="x"), "has a system message of its own"),
        (
            {"prompt": [{"role": "judge", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
            None,
            r"number 1: the chat template refuses these messages \(Unknown role judge\)",
        ),
        (
            {"chosen": "It is a.", "rejected": "It is b."},
            PromptFormat(apply_chat_template=True),
            "number 1: has no prompt that the chat template could send",
        ),
    ],
)
def test_what_a_model_cannot_read_is_refused_by_its_place(
    row: Any, prompt_format: Any, reason: str | None, lm: SteeredHFLM
) -> None:
    if reason is None:
        assert "[system] x<eos>" in drawn(lm, [row], prompt_format, held_out=0).examples.train[0].shown
        return
    with pytest.raises(TaskError, match=reason):
        drawn(lm, [row], prompt_format, held_out=0)
    with pytest.raises(TaskError, match=reason):
        evaluated_pairs(read([row]), lm, prompt_format)


def test_a_tokenizer_without_a_chat_template_is_named(plain: SteeredHFLM) -> None:
    with pytest.raises(
        TaskError, match=r"number 1: the tokenizer of .* has no chat template; give pairs of text instead"
    ):
        drawn(plain, [chat("a", "b")], held_out=0)


def test_templates_that_say_less_before_a_known_answer_are_cut_where_they_agree(lm: SteeredHFLM) -> None:
    other = copy.copy(lm)
    other.tokenizer = copy.deepcopy(lm.tokenizer)
    other.tokenizer.chat_template = TEMPLATE.replace("[assistant] {% endif", "[assistant] <think>{% endif")
    (example,) = drawn(other, [chat("What?", "A cat", "A dog")], held_out=0).examples.train
    assert example.shown == "[user] What?<eos>\n[assistant] " and whole(lm, example.requests[1]).endswith("A dog<eos>")


def test_words_that_meet_are_warned_of(plain: SteeredHFLM, caplog: pytest.LogCaptureFixture) -> None:
    drawn(plain, [text(1)], held_out=0)
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        drawn(plain, [text(1, chosen="yes")], held_out=0)
    assert "no white space stands between the prompts and the texts ('Number 1:yes')" in caplog.text
