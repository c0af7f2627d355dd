"""Pairs of texts: a prompt with a text that is wanted and, where there is one, a text that is not.

Knows the fields that TRL reads, as text and as chat messages. Knows nothing of files, models or tokens: where a pair
comes from is only what messages call it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aft_harness.digests import digest
from aft_harness.errors import TaskError
from aft_harness.text import shared_start

FIELDS = ("prompt", "chosen", "rejected", "completion")
"""What is read of a row; other fields are ignored, but for `label`."""

FEW_PROMPTS = 0.1
"""Where fewer of the pairs differ in their prompt, a prompt is no question: the chosen text tells pairs apart, too."""

_LISTED = 8
"""Fields that a message names."""

Message = Mapping[str, str]
"""A chat message: `role` and `content`."""


@dataclass(frozen=True)
class Pair:
    """One pair, whatever form it had.

    Attributes:
        place: What messages call it, such as `pairs.jsonl: line 3`.
        prompt: Text, or chat messages; empty where the texts have nothing in common that they start with.
        chosen: The text that is wanted; of chat messages the content of the answer.
        rejected: The text that is not wanted; None where there is none.
        prompted: Whether the prompt had a field of its own.
    """

    place: str
    prompt: str | tuple[Message, ...]
    chosen: str
    rejected: str | None
    prompted: bool

    @property
    def chat(self) -> bool:
        """Whether the prompt is chat messages."""
        return not isinstance(self.prompt, str)

    @property
    def texts(self) -> tuple[str, ...]:
        """The chosen text, and the rejected one where there is one."""
        return (self.chosen,) if self.rejected is None else (self.chosen, self.rejected)

    @property
    def asked(self) -> str:
        """The prompt as text, of chat messages without those of the system unless there are no others."""
        if isinstance(self.prompt, str):
            return self.prompt
        said = [message["content"] for message in self.prompt if message["role"] != "system"]
        return "\n".join(said or [message["content"] for message in self.prompt])


def pairs_of(rows: Iterable[tuple[str, Any]], source: str) -> list[Pair]:
    """The pairs of rows that are all of one kind.

    Args:
        rows: What messages call each row, and the row.
        source: What messages call them all.

    Raises:
        TaskError: There are none, or a row that is no pair or of another kind than the first.
    """
    pairs: list[Pair] = []
    for place, row in rows:
        pair = _pair(row, place)
        if pairs:
            _check_kind(pair, pairs[0])
        pairs.append(pair)
    if not pairs:
        raise TaskError(f"{source}: no pairs")
    return pairs


def questions(pairs: Sequence[Pair]) -> list[str]:
    """What tells each of some pairs apart from the others: pairs with one question are the same document.

    It is the prompt. Where texts come without a prompt, or nearly all pairs share a few prompts, the chosen text is
    part of it.
    """
    prompts = {pair.asked for pair in pairs}
    alike = len(pairs) > 1 and len(prompts) < max(2, FEW_PROMPTS * len(pairs))
    own = [pair.prompted or pair.chat for pair in pairs]
    return [
        pair.asked if named and not alike else f"{pair.asked}{pair.chosen}"
        for pair, named in zip(pairs, own, strict=True)
    ]


def version(pairs: Sequence[Pair]) -> str:
    """Twelve hex digits that are the same for the same pairs in the same order."""
    return digest([(pair.prompt, pair.chosen, pair.rejected) for pair in pairs])[:12]


def _pair(row: Any, place: str) -> Pair:
    if not isinstance(row, Mapping):
        raise TaskError(f"{place}: not an object with the fields prompt, chosen and rejected")
    given = {field: row[field] for field in FIELDS if row.get(field) is not None}
    if "completion" in given and row.get("label") is not None:
        raise TaskError(f"{place}: has a label of its completion; give the texts as chosen and rejected")
    if "completion" in given and len({"chosen", "rejected"} & given.keys()):
        raise TaskError(f"{place}: has completion together with {'chosen' if 'chosen' in given else 'rejected'}")
    wanted = "completion" if "completion" in given else "chosen"
    if wanted not in given:
        raise TaskError(f"{place}: has neither chosen nor completion ({_present(row)})")
    if "rejected" not in given and "prompt" not in given:
        raise TaskError(f"{place}: has {wanted} but no prompt ({_present(row)})")
    chat = {field: isinstance(value, list | tuple) for field, value in given.items()}
    for field, value in given.items():
        if not (chat[field] or isinstance(value, str)):
            raise TaskError(f"{place}: {field} is neither text nor a list of chat messages")
    if len(set(chat.values())) > 1:
        listed = {True: [], False: []}  # type: dict[bool, list[str]]
        for field, is_list in chat.items():
            listed[is_list].append(field)
        raise TaskError(
            f"{place}: {' and '.join(listed[True])} are chat messages but {' and '.join(listed[False])} is text; give "
            f"all as text or all as messages"
        )
    made = _of_messages if chat[wanted] else _of_texts
    pair = made(given, wanted, place)
    if pair.rejected is not None and pair.chosen.strip() == pair.rejected.strip():
        raise TaskError(f"{place}: chosen and rejected are the same text")
    return pair


def _of_texts(given: Mapping[str, Any], wanted: str, place: str) -> Pair:
    for field, text in given.items():
        if not text.strip():
            raise TaskError(f"{place}: {field} is empty")
        _check_text(text, f"{place}: {field}")
    chosen = given[wanted]
    if "prompt" in given:
        return Pair(place, given["prompt"], chosen, given.get("rejected"), True)
    rejected = given["rejected"]
    # As TRL does: what both texts start with is the prompt, up to the last white space, which belongs to the texts.
    shared = shared_start(chosen, rejected)
    cut = max((place for place, character in enumerate(shared) if character.isspace()), default=0)
    if not chosen[cut:].strip() or not rejected[cut:].strip():
        raise TaskError(f"{place}: {'chosen' if len(chosen) < len(rejected) else 'rejected'} is only the other's start")
    return Pair(place, chosen[:cut], chosen[cut:], rejected[cut:], False)


def _of_messages(given: Mapping[str, Any], wanted: str, place: str) -> Pair:
    messages = {field: list(_messages(value, f"{place}: {field}")) for field, value in given.items()}
    chosen, rejected = messages[wanted], messages.get("rejected")
    prompt = messages.get("prompt")
    if prompt is None:
        assert rejected is not None
        shared = 0
        while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
            shared += 1
        shared = min(shared, len(chosen) - 1, len(rejected) - 1)  # where both are the same, their last messages are
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
        if not prompt:
            raise TaskError(f"{place}: chosen and rejected have no message in common that could be the prompt")
    if prompt[-1]["role"] == "assistant":
        raise TaskError(f"{place}: the prompt ends with a message of the assistant; it must end with the user's")
    for field, part in ((wanted, chosen), ("rejected", rejected)):
        if part is not None and (len(part) != 1 or part[0]["role"] != "assistant"):
            raise TaskError(f"{place}: {field} must be one message of the assistant after the prompt ({_roles(part)})")
    return Pair(place, tuple(prompt), chosen[0]["content"], rejected[0]["content"] if rejected else None, True)


def _messages(value: Sequence[Any], place: str) -> Iterator[Message]:
    if not value:
        raise TaskError(f"{place} has no messages")
    for number, message in enumerate(value, start=1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise TaskError(f"{place}: message {number} has no role")
        if not isinstance(message.get("content"), str):
            raise TaskError(f"{place}: the content of message {number} is not text")
        if not message["content"].strip():
            raise TaskError(f"{place}: message {number} is empty")
        _check_text(f"{message['role']}{message['content']}", f"{place}: message {number}")
        yield {"role": message["role"], "content": message["content"]}


def _check_text(text: str, place: str) -> None:
    """Refuses halves of surrogate pairs, which JSON can hold and no tokenizer takes."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise TaskError(f"{place} contains an unpaired surrogate, which is not valid text")


def _check_kind(pair: Pair, first: Pair) -> None:
    if pair.chat != first.chat:
        kinds = ("chat messages", "text") if pair.chat else ("text", "chat messages")
        raise TaskError(f"{pair.place}: is {kinds[0]}, but {_short(first)} is {kinds[1]}; give all pairs in one form")
    if (pair.rejected is None) != (first.rejected is None):
        has = ("no rejected text", "one") if pair.rejected is None else ("a rejected text", "none")
        raise TaskError(f"{pair.place}: has {has[0]}, but {_short(first)} has {has[1]}; give all pairs in one form")


def _short(pair: Pair) -> str:
    return pair.place.rpartition(": ")[2]


def _present(row: Mapping[str, Any]) -> str:
    names = [str(name) for name, value in row.items() if value is not None]
    if not names:
        return "it is empty"
    return f"it has {', '.join(names[:_LISTED])}{' and more' if len(names) > _LISTED else ''}"


def _roles(messages: Sequence[Message]) -> str:
    return "it has " + (", ".join(message["role"] for message in messages) or "none")
