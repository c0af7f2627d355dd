"""Text from outside, in a cell or a message of one line, and cells in columns. Knows characters only."""

from __future__ import annotations

from collections.abc import Sequence


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


def aligned(lines: Sequence[Sequence[str]], left: Sequence[bool]) -> str:
    """Lines of cells in columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in lines
    )
