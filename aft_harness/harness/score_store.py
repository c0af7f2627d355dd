"""Loglikelihoods and texts that were computed once, kept in a file: what an interrupted study goes on from.

Found by content: the key of an entry is a digest of everything its value depends on, so that another model, booster,
dtype or prompt never meets an old answer. Knows nothing of how scores are computed.
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from aft_harness.errors import CacheError
from aft_harness.results.text import printable

Result = tuple[float, bool]

_NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY)
"""What goes wrong with a file whose content is right."""


class AnswerStore(Protocol):
    """Where scores and texts are kept by key; see `ScoreStore` and `answers.Answers`."""

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Result]:
        """The scores of those keys that are there."""

    def get_texts(self, keys: Sequence[bytes]) -> dict[bytes, str]:
        """The texts of those keys that are there."""

    def put(self, results: Mapping[bytes, Result]) -> None:
        """Adds scores."""

    def put_texts(self, texts: Mapping[bytes, str]) -> None:
        """Adds texts."""


class ScoreStore:
    """A file of results by key, a context manager.

    Each `put` is one transaction: a process that is killed loses what it had not put, and nothing else.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it.

        Raises:
            CacheError: It cannot be opened, or is no such file.
        """
        self._path = path
        with self._explained():
            self._database = sqlite3.connect(path, timeout=60)
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, score REAL, greedy INTEGER)"
            )
            self._database.execute("CREATE TABLE IF NOT EXISTS texts (key BLOB PRIMARY KEY, text TEXT)")

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Result]:
        """The results of those keys that are there; one that is not finite, as earlier versions stored, is not.

        Raises:
            CacheError: The file cannot be read, or holds something else than scores.
        """
        found: dict[bytes, Result] = {}
        for key, score, greedy in self._rows("scores", "score, greedy", keys):
            if score is None or greedy is None:  # NULL is what SQLite makes of NaN
                continue
            if not isinstance(score, int | float) or greedy not in (0, 1):
                raise self._unusable("a stored score is not a number")
            if math.isfinite(score):
                found[key] = (float(score), bool(greedy))
        return found

    def get_texts(self, keys: Sequence[bytes]) -> dict[bytes, str]:
        """The texts of those keys that are there.

        Raises:
            CacheError: The file cannot be read, or holds something else than texts.
        """
        found = {key: text for key, text in self._rows("texts", "text", keys) if text is not None}
        if not all(isinstance(text, str) for text in found.values()):
            raise self._unusable("a stored text is not text")
        return found

    def put(self, results: Mapping[bytes, Result]) -> None:
        """Adds results; those of a key that is there already are replaced.

        Raises:
            CacheError: The file cannot be written, or a score is not finite: none of the results is stored.
        """
        for score, _ in results.values():
            if not math.isfinite(score):
                raise CacheError(
                    f"{self._path}: a score of {score} is not stored: the model's output is not finite; "
                    "try another dtype or a smaller strength"
                )
        with self._explained(), self._database:
            self._database.executemany(
                "INSERT OR REPLACE INTO scores VALUES (?, ?, ?)",
                [(key, score, int(greedy)) for key, (score, greedy) in results.items()],
            )

    def put_texts(self, texts: Mapping[bytes, str]) -> None:
        """Adds texts; those of a key that is there already are replaced.

        Raises:
            CacheError: The file cannot be written.
        """
        with self._explained(), self._database:
            self._database.executemany("INSERT OR REPLACE INTO texts VALUES (?, ?)", list(texts.items()))

    def _rows(self, table: str, columns: str, keys: Sequence[bytes]) -> list[Any]:
        found: list[Any] = []
        with self._explained():
            for start in range(0, len(keys), 500):
                part = keys[start : start + 500]
                query = f"SELECT key, {columns} FROM {table} WHERE key IN ({','.join('?' * len(part))})"
                found += self._database.execute(query, part)
        return found

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeError) as error:  # the latter: text that is not Unicode
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _NO_ROOM:
                raise CacheError(
                    f"{self._path}: cannot be written ({printable(error)}); make room and rerun the same command"
                ) from None
            raise self._unusable(printable(error)) from None

    def _unusable(self, reason: str) -> CacheError:
        return CacheError(f"{self._path}: cannot be used as a cache ({reason}); delete it or use another file")

    def __enter__(self) -> Self:
        """Returns the store."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the file."""
        self._database.close()


def content(*parts: object) -> str:
    """What a request asks, as text: made once for all that it is asked of."""
    return "\0".join(map(repr, parts))


def key_of(identity: str, asked: str) -> bytes:
    """The key of a result, which depends on who is asked and on what.

    Args:
        identity: From `SteeredHFLM.cache_identity`.
        asked: From `content`.
    """
    return hashlib.sha256(f"{identity!r}\0{asked}".encode()).digest()[:20]
