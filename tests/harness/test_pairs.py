"""What makes a row a pair: the fields that TRL reads, and one clear line for what is none."""

from __future__ import annotations

from typing import Any

import pytest

from aft_harness.errors import TaskError
from aft_harness.harness.pairs import Pair, pairs_of, questions, version


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


USER = said("user", "What is it?")
SHORT, LONG = said("assistant", "A cat."), said("assistant", "Well, a cat.")


def read(*rows: Any) -> list[Pair]:
    return pairs_of(((f"f.jsonl: line {number}", row) for number, row in enumerate(rows, start=1)), "f.jsonl")


def test_text_and_chat_of_every_form_become_the_same_pairs() -> None:
    (text,) = read({"prompt": "It is", "chosen": " a cat.", "rejected": " a dog.", "score": 3})
    assert (text.prompt, text.texts, text.chat, text.prompted) == ("It is", (" a cat.", " a dog."), False, True)
    (alone,) = read({"prompt": "It is", "completion": " a cat."})
    assert alone.texts == (" a cat.",) and alone.rejected is None
    assert read({"prompt": "It is", "chosen": " a cat.", "rejected": None})[0].texts == alone.texts
    (chat,) = read({"prompt": [USER], "chosen": [SHORT], "rejected": [LONG]})
    (implicit,) = read({"chosen": [USER, SHORT], "rejected": [USER, LONG]})
    assert chat.prompt == implicit.prompt == (USER,)
    assert chat.texts == implicit.texts == ("A cat.", "Well, a cat.") and chat.chat
    (turns,) = read({"chosen": [USER, SHORT, USER, SHORT], "rejected": [USER, SHORT, USER, LONG]})
    assert turns.prompt == (USER, SHORT, USER) and turns.texts == chat.texts


def test_texts_without_a_prompt_are_cut_where_their_words_part() -> None:
    (pair,) = read({"chosen": "The sky is blue.", "rejected": "The sky is black."})
    assert (pair.prompt, pair.texts, pair.prompted) == ("The sky is", (" blue.", " black."), False)
    (none,) = read({"chosen": "Blue.", "rejected": "Black."})
    assert (none.prompt, none.texts) == ("", ("Blue.", "Black."))


WRONG: dict[str, tuple[list[Any], str]] = {
    "no pairs": ([], "f.jsonl: no pairs"),
    "a list": ([[1]], "f.jsonl: line 1: not an object with the fields prompt, chosen and rejected"),
    "a number": ([3], "line 1: not an object"),
    "no field": ([{"text": "a", "x": 1}], "line 1: has neither chosen nor completion .it has text, x."),
    "empty row": ([{}], "line 1: has neither chosen nor completion .it is empty."),
    "no prompt": ([{"completion": "a"}], "line 1: has completion but no prompt"),
    "no prompt and none rejected": ([{"chosen": "a"}], "line 1: has chosen but no prompt"),
    "both": ([{"prompt": "a", "completion": "b", "chosen": "c"}], "line 1: has completion together with chosen"),
    "label": ([{"prompt": "a", "completion": "b", "label": False}], "line 1: has a label of its completion"),
    "number as text": ([{"prompt": "a", "completion": 3}], "line 1: completion is neither text nor a list of chat"),
    "empty prompt": ([{"prompt": " ", "completion": "b"}], "line 1: prompt is empty"),
    "empty chosen": ([{"prompt": "a", "chosen": "", "rejected": "b"}], "line 1: chosen is empty"),
    "empty rejected": ([{"prompt": "a", "chosen": "b", "rejected": "\n"}], "line 1: rejected is empty"),
    "the same": ([{"prompt": "a", "chosen": "b", "rejected": "b "}], "line 1: chosen and rejected are the same text"),
    "the same chat": ([{"chosen": [USER, SHORT], "rejected": [USER, SHORT]}], "chosen and rejected are the same text"),
    "the start": ([{"chosen": "The sky ", "rejected": "The sky is"}], "line 1: chosen is only the other's start"),
    "text and chat": (
        [{"prompt": "a", "chosen": [SHORT], "rejected": [LONG]}],
        "line 1: chosen and rejected are chat messages but prompt is text",
    ),
    "mixed rows": ([{"prompt": "a", "completion": "b"}, {"prompt": [USER], "completion": [SHORT]}], "line 2: is chat"),
    "some rejected": (
        [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b"}],
        "line 2: has no rejected text, but line 1 has one",
    ),
    "no message": ([{"prompt": [], "completion": [SHORT]}], "line 1: prompt has no messages"),
    "no role": ([{"prompt": [{"content": "a"}], "completion": [SHORT]}], "prompt: message 1 has no role"),
    "image": ([{"prompt": [USER, {"role": "user", "content": [1]}], "completion": [SHORT]}], "message 2 is not text"),
    "empty message": ([{"prompt": [said("user", " ")], "completion": [SHORT]}], "prompt: message 1 is empty"),
    "answered": ([{"prompt": [USER, SHORT], "completion": [LONG]}], "the prompt ends with a message of the assistant"),
    "user answers": ([{"prompt": [USER], "completion": [USER]}], "must be one message of the assistant.*has user"),
    "two answers": ([{"prompt": [USER], "completion": [SHORT, LONG]}], "one message of the assistant"),
    "nothing shared": ([{"chosen": [SHORT], "rejected": [LONG]}], "no message in common that could be the prompt"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_pair_is_one_line_with_its_place(name: str) -> None:
    rows, reason = WRONG[name]
    with pytest.raises(TaskError, match=reason) as caught:
        read(*rows)
    assert str(caught.value).startswith("f.jsonl: ")


def test_a_question_is_what_is_asked_and_not_by_whom() -> None:
    pairs = read(
        {"prompt": [said("system", "Be kind."), USER], "completion": [SHORT]},
        {"prompt": [said("user", "And this?")], "completion": [SHORT]},
    )
    assert questions(pairs) == ["What is it?", "And this?"]
    assert read({"prompt": [said("system", "Go.")], "completion": [SHORT]})[0].asked == "Go."


def test_pairs_that_share_their_prompt_are_told_apart_by_their_text() -> None:
    one_prompt = read(*({"prompt": "Go on:", "completion": f" {word}"} for word in "abc"))
    assert questions(one_prompt) == ["Go on: a", "Go on: b", "Go on: c"]
    several = read(*({"prompt": f"{word}:", "completion": f" {place}"} for word in "ab" for place in range(3)))
    assert questions(several) == ["a:"] * 3 + ["b:"] * 3
    implicit = read({"chosen": "I go.", "rejected": "I stay."}, {"chosen": "I see.", "rejected": "I hear."})
    assert questions(implicit) == ["I go.", "I see."]


def test_a_version_is_that_of_the_content() -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert version(read(row)) == version(read({**row, "score": 1})) != version(read({**row, "rejected": "d"}))
