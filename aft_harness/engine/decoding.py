"""A trie of token sequences as a chain of decodes that go on from each other, for engines that keep what they read.

A decode lays out several leaves of the trie depth-first. A token belongs to every leaf below it, so what leaves share
is read once; and what the first leaf shares with the last one of the decode before is still there and not read again.
So few-shot prefixes stay while their documents pass, and a document whose choices do not fit one decode is continued in
the next.

Knows integers and the trie. What a sequence is to an engine, and what comes of the positions that are wanted, are the
caller's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aft_harness.engine.trie import Leaf, Trie

_WORTH_KEEPING = 16
"""Tokens that a decode rather reads again than ends for."""


@dataclass(frozen=True, slots=True)
class Decode:
    """Leaves that are read together. Leaf number i of a decode is the engine's sequence number i.

    Attributes:
        tokens: int32 [n], what is read.
        positions: int32 [n], where each token stands in its sequences.
        first: int32 [n], the first sequence that each token belongs to.
        count: int32 [n], how many sequences it belongs to, which follow each other.
        wanted: bool [n], whether the next token's probabilities are wanted.
        kept: by sequence, the positions that it takes over from the last sequence of the decode before.
        lengths: by sequence, the positions that it has in the end.
        members: the indices of the token sequences that these leaves hold.
        leaves: by member, the sequence that it belongs to.
        rows: by member, which of the wanted positions predict its tail, in order.
    """

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    first: NDArray[np.int32]
    count: NDArray[np.int32]
    wanted: NDArray[np.bool_]
    kept: tuple[int, ...]
    lengths: tuple[int, ...]
    members: tuple[int, ...]
    leaves: tuple[int, ...]
    rows: tuple[NDArray[np.int64], ...]

    def __len__(self) -> int:
        """Number of tokens that are read."""
        return len(self.tokens)

    @property
    def cells(self) -> int:
        """Positions that are held at once: those that are taken over and those that are read."""
        return max(self.kept) + len(self.tokens)


def decodes(
    sequences: Sequence[Sequence[int]],
    tails: Sequence[int],
    *,
    most_tokens: int,
    most_leaves: int,
    keeping: bool = True,
) -> Iterator[Decode]:
    """Lays token sequences out in decodes, which together hold every sequence exactly once.

    Args:
        sequences: Token ids, none empty.
        tails: How many of the last tokens of each predict something that is wanted, at least 1.
        most_tokens: Tokens of a decode, unless a single leaf has more.
        most_leaves: Leaves of a decode.
        keeping: False reads every decode from its first token on.

    Raises:
        ValueError: An empty sequence, or a tail that its sequence does not have.
    """
    trie = Trie(sequences, tails)
    begins = [min(length - tails[index] for length, index in leaf.members) for leaf in trie.leaves]
    group: list[int] = []
    commons: list[int] = []  # what each leaf of the group shares with the leaf before it
    kept: list[int] = []
    size = 0
    for place, leaf in enumerate(trie.leaves):
        common = trie.shared[place - 1] if place else 0
        begin, length = begins[place], len(leaf.tokens)
        lost = kept[0] - begin if group and begin < min(kept[-1], common) else 0
        full = size + length - common > most_tokens or len(group) == most_leaves
        if group and (full or lost > _WORTH_KEEPING):
            yield _laid_out(trie.leaves, tails, group, commons, kept)
            group, commons, kept, size = [], [], [], 0
        if not group:
            kept = [min(common, begin) if keeping else 0]
            group, commons, size = [place], [kept[0]], length - kept[0]
            continue
        kept.append(min(kept[-1], common))
        if begin < kept[-1]:  # what predicts this tail was read before, and its probabilities are gone
            size += kept[0] - begin
            kept = [min(each, begin) for each in kept]
            commons[0] = kept[0]
        group.append(place)
        commons.append(common)
        size += length - common
    if group:
        yield _laid_out(trie.leaves, tails, group, commons, kept)


def _laid_out(
    leaves: Sequence[Leaf], tails: Sequence[int], group: Sequence[int], commons: Sequence[int], kept: Sequence[int]
) -> Decode:
    size = sum(len(leaves[place].tokens) - common for place, common in zip(group, commons, strict=True))
    tokens, positions, first = (np.empty(size, dtype=np.int32) for _ in range(3))
    last = np.full(size, len(group), dtype=np.int32)
    path = np.full(kept[0], -1, dtype=np.int64)  # columns from the root to the current leaf; -1 for what was kept
    members: list[int] = []
    owners: list[int] = []
    columns: list[NDArray[np.int64]] = []
    end = 0
    for number, (place, common) in enumerate(zip(group, commons, strict=True)):
        leaf = leaves[place]
        start, end = end, end + len(leaf.tokens) - common
        left = path[common:]
        last[left[left >= 0]] = number
        path = np.concatenate([path[:common], np.arange(start, end)])
        tokens[start:end] = leaf.tokens[common:]
        positions[start:end] = np.arange(common, len(leaf.tokens))
        first[start:end] = number
        for length, member in leaf.members:
            members.append(member)
            owners.append(number)
            columns.append(path[length - tails[member] : length])
    wanted = np.zeros(size, dtype=np.bool_)
    wanted[np.concatenate(columns)] = True
    slots = np.cumsum(wanted) - 1
    return Decode(
        tokens,
        positions,
        first,
        last - first,
        wanted,
        tuple(kept),
        tuple(len(leaves[place].tokens) for place in group),
        tuple(members),
        tuple(owners),
        tuple(slots[each] for each in columns),
    )
