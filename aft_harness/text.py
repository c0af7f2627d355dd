"""Text from outside on its way to a screen or a message. Knows characters only."""

from __future__ import annotations


def printable(text: object) -> str:
    """A value as text of one line that no terminal takes for a command.

    Whatever is not a printable character becomes a space: line breaks, escapes, marks that turn the direction of
    writing, halves of surrogate pairs. There is no white space at the ends.
    """
    shown = str(text)
    if not shown.isprintable():
        shown = "".join(character if character.isprintable() else " " for character in shown)
    return shown.strip()


def reason(error: BaseException, *, sentence: bool = False) -> str:
    """What an error says, on one line of at most 300 characters; of the system's errors without their number.

    Args:
        error: Of another library, whose messages may be long and have several lines.
        sentence: Its first sentence only.
    """
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    shown = " ".join(text.split())
    return (shown.split(". ")[0] if sentence else shown)[:300]


def between(text: str, begin: str, end: str, content: str) -> str:
    """A text whose part between two marks, which stay, is replaced.

    Args:
        text: Has both marks.
        begin: The first.
        end: The second.
        content: What stands between them from now on, on lines of its own.
    """
    before, rest = text.split(begin, 1)
    return f"{before}{begin}\n{content}\n{end}{rest.split(end, 1)[1]}"


def shared_start(*texts: str) -> str:
    """The characters that all of some texts begin with."""
    first, last = min(texts), max(texts)
    differ = (place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return first[: next(differ, min(len(first), len(last)))]
