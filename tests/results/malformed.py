"""Files as nobody should write them: what the fuzzers of this folder and of the score store read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from aft_harness.errors import AftError

INPUTS = 2000
"""So many of each kind are tried in every test run."""

_DEEP = "a place for deep nesting"

WRONG = (
    *(None, True, False, 0, -1, 3, 0.5, 2**70, 10**400, 1e300, -1e308, float("nan"), float("inf")),
    *("", "text", "1", "a\nb\x1b[31m", "\u2028", "\ud800", "../x", "/", "\0", "=1+1", "x" * 300, _DEEP),
    *([], [1], ["a", ["b"]], {}, {"a": 1}, [None]),
)


def one_line_or_fine(act: Callable[[], object]) -> None:
    """Does it; an error must be one of ours, in one line without control characters."""
    try:
        act()
    except AftError as error:
        assert str(error) and str(error).isprintable(), repr(error)


def write(path: Path, content: bytes) -> None:
    """Writes a file in place: some file systems take milliseconds to empty one first."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(content)
        file.truncate()


def altered(rng: Random, value: Any) -> Any:
    """JSON in which one value, key or member is wrong, missing or there twice."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if (act := rng.random()) < 0.1:
            return {name: each for name, each in value.items() if name != key}
        if act < 0.15:
            return {(str(rng.choice(WRONG)) if name == key else name): each for name, each in value.items()}
        return {**value, key: altered(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = rng.randrange(len(value))
        if (act := rng.random()) < 0.1:
            return value[:place] + value[place + 1 :]
        if act < 0.2:
            return [*value, altered(rng, value[place])]
        return [*value[:place], altered(rng, value[place]), *value[place + 1 :]]
    return rng.choice(WRONG)


def as_json(rng: Random, value: Any) -> bytes:
    """JSON text of it, with deep nesting where there is a place for it."""
    depth = rng.choice((300, 900, 990, 100_000))
    return json.dumps(value).replace(f'"{_DEEP}"', "[" * depth + "]" * depth).encode()


def spoilt(rng: Random, content: bytes) -> bytes:
    """Bytes of which some are lost, changed, or there twice."""
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(content) + 1)
        end = min(len(content), start + rng.randint(0, 12))
        middle = rng.choice(
            (
                b"",
                content[start:end] * 2,
                rng.randbytes(3),
                b"\xff\xfe",
                b"\n",
                b"\r",
                b'"',
                b",",
                b"nan",
                b"\0",
                b"[" * 5000,
            )
        )
        content = content[:start] if rng.random() < 0.15 else content[:start] + middle + content[end:]
    return content
