from __future__ import annotations

import pytest

from aft_harness.errors import ParseError
from aft_harness.harness.selection import TRAINING_DOCUMENTS, PromptFormat, TaskSelection, task_names


def test_names_are_listed_once_in_their_order() -> None:
    assert task_names("b, a,b,,a ") == ["b", "a"] == task_names(["b", " a", "b", ""])
    for nothing in ("", " , ", []):
        with pytest.raises(ParseError, match="no tasks given"):
            task_names(nothing)


@pytest.mark.parametrize("asked", [None, True, False])
@pytest.mark.parametrize("chat", [True, False])
def test_shots_are_chat_turns_where_there_is_a_chat_unless_told_otherwise(asked: bool | None, chat: bool) -> None:
    prompt_format = PromptFormat(apply_chat_template=chat, fewshot_as_multiturn=asked)
    assert prompt_format.multiturn == (chat if asked is None else asked)


def test_a_name_alone_takes_the_defaults() -> None:
    assert TaskSelection("a").limit == TRAINING_DOCUMENTS == 600


def test_numbers_of_documents_leave_some() -> None:
    assert TaskSelection("a", limit=None, dev_docs=0).limit is None
    for numbers, reason in (
        ({"limit": 0}, "a limit of 0 leaves no training"),
        ({"dev_docs": -1}, "-1 is not a valid number"),
    ):
        with pytest.raises(ParseError, match=reason):
            TaskSelection("a", **numbers)
