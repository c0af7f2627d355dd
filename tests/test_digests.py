"""Digests: by content, not by address, order of a set, process or place."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aft_harness.digests import digest

PROGRAM = """
import functools, sys
sys.path.insert(0, {folder!r})
import helpers
from aft_harness.digests import digest
class Holder:
    def __init__(self): self.words = {{"c", "a", "b"}}
print(digest({{
    "function": helpers.process, "partial": functools.partial(helpers.process, 3), "lambda": lambda x: x + 1,
    "class": helpers.Filter, "object": helpers.Filter(), "method": helpers.Filter().apply, "set": {{"x", "y", "z"}},
    "holder": Holder(), "built in": len,
}}))
"""
HELPERS = """
def process(docs, n=1):
    return [doc for doc in docs]

class Filter:
    def __init__(self): self.kept = frozenset({"x", "y"})
    def apply(self, docs): return docs
"""


def test_another_process_in_another_place_finds_the_same(tmp_path: Path) -> None:
    found = set()
    for seed in ("1", "2"):
        folder = tmp_path / f"folder{seed}"
        folder.mkdir()
        (folder / "helpers.py").write_text(HELPERS)
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        program = PROGRAM.format(folder=str(folder))
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1


def plus(value: int) -> int:
    return value + 1


def minus(value: int) -> int:
    return value - 1


class Holder:
    def __init__(self, held: object) -> None:
        self.held = held


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (plus, minus),
        (lambda x: x + 1, lambda x: x + 2),
        (functools.partial(plus, 1), functools.partial(plus, 2)),
        (Holder(1), Holder(2)),
        (Holder(plus), Holder(minus)),
        ({"a": 1}, {"a": 2}),
        ([1, 2], [2, 1]),
        ({1, 2}, {1, 3}),
        (b"a", b"b"),
        (np.arange(5000), np.arange(5000) % 4999),
        (1, "1"),
        (None, "None"),
    ],
)
def test_other_content_is_another_digest(left: object, right: object) -> None:
    assert digest(left) != digest(right)
    assert digest({"config": [left]}) != digest({"config": [right]})


def test_what_is_no_content_is_no_part_of_it() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(Path("/home/somebody/data.json")) == digest(Path("/mnt/data.json"))
    assert digest(Holder({3, 1, 2})) == digest(Holder({2, 3, 1}))
