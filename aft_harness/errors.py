"""The errors a user can cause, each with a message of one line that says what is wrong and what to do.

Library callers catch these types; the command line prints the message and exits with `exit_code`: 2 where a value
cannot be understood, 1 where the work went wrong. Imports nothing heavy, so that every module may raise them.
"""

from __future__ import annotations

from aft_harness.text import printable

LONGEST = 2000
"""Characters of a message. What it quotes from a file may be a thousand times as long."""


class AftError(Exception):
    """Base class of all errors caused by bad input."""

    exit_code = 1

    def __str__(self) -> str:
        """The message in one line, whatever it quotes."""
        message = printable(super().__str__())
        if len(message) <= LONGEST:
            return message
        return f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"  # what is wrong often stands at the end


class ParseError(AftError, ValueError):
    """A value that cannot be understood: layers, a slice of documents, strengths, a reference."""

    exit_code = 2


class ReferenceSyntaxError(ParseError):
    """A `vector=` value that cannot be parsed."""


class FileError(AftError):
    """A file or folder that cannot be read or written."""


class BoosterError(AftError, ValueError):
    """A booster file or booster that cannot be used: malformed, of the wrong shape, for another model."""


class HubError(BoosterError):
    """A booster that cannot be fetched from the hub or pushed to it."""


class ModelError(AftError, ValueError):
    """A model that cannot be loaded or steered."""


class TaskError(AftError, ValueError):
    """A task, pair of texts, split or document selection that cannot be used, or results that cannot be compared."""


class CacheError(AftError, RuntimeError):
    """A response cache that belongs to another model or booster."""


class TrainingError(AftError, ValueError):
    """A training request whose settings do not go together, or that diverged."""


class ExportError(AftError, ValueError):
    """A booster that cannot be said exactly in another format, or an export that cannot be written or used."""


class StudyError(AftError, RuntimeError):
    """A study that cannot run where it was asked to, or of which some cells failed."""
