"""Sequences that share prefixes, and plain loops over the rows that they are packed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from aft_harness.engine.rows import Row

Sequences = list[list[int]]
Drawn = tuple[Sequences, list[int]]


@st.composite
def requests(draw: st.DrawFn) -> Drawn:
    """Draw sequences that share a lot, with duplicates and prefixes of one another, and their tails."""
    # Token ids of one to four bytes: no order but that of whole tokens keeps prefixes together for all of them.
    token = st.sampled_from([0, 1, 256, 2**31 - 1])
    sequences = draw(st.lists(st.lists(token, min_size=1, max_size=12), min_size=1, max_size=12))
    for origin in draw(st.lists(st.sampled_from(sequences), max_size=6)):
        kept = draw(st.integers(1, len(origin)))
        sequences.append(origin[:kept] + draw(st.lists(token, max_size=3)))
    sequences = draw(st.permutations(sequences))
    return sequences, [draw(st.integers(1, len(sequence))) for sequence in sequences]


widths = st.integers(1, 40)


def for_all(*strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Do as `given`, with no limit on the time an example takes."""
    return lambda test: settings(deadline=None)(given(*strategies)(test))


def ancestors(row: Row, column: int) -> list[int]:
    """Find by plain loop the columns that a column sees, in the order of depth."""
    seen = [other for other in range(len(row)) if other <= column < int(row.subtree_end[other])]
    return sorted(seen, key=lambda other: int(row.depth[other]))


def paths(rows: list[Row]) -> Iterator[tuple[Row, int, list[int]]]:
    """Yield each packed sequence: its row, its index and, from its last tail column back, its columns."""
    for row in rows:
        for member, tail in zip(row.members, row.tails, strict=True):
            yield row, member, ancestors(row, int(tail[-1]))


def prefixes(sequences: Sequences) -> set[tuple[int, ...]]:
    """List the nodes of the trie of sequences."""
    return {tuple(sequence[:end]) for sequence in sequences for end in range(1, len(sequence) + 1)}
