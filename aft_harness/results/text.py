"""Text from outside, in a cell or a message of one line. Knows characters only."""

from __future__ import annotations


def one_line(value: object) -> str:
    """A value as a cell: what could break a line or drive a terminal becomes spaces."""
    text = str(value)
    if not text.isprintable():
        text = "".join(character if character.isprintable() else " " for character in text)
    return text.strip()


def printable(value: object) -> str:
    """A value in a message: what could break a line or drive a terminal is spelled out by its code."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
