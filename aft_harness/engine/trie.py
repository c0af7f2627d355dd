"""Token sequences in, packed rows out: common prefixes are laid out once.

Requests that score a language model share most of their tokens: the few-shot prefix of a task, the context of a
document's choices. Sorted by token ids the sequences form a trie, which is cut into rows of bounded width. Sharing,
packing and the lack of padding are one mechanism.

This module knows integers and the rows of `rows.py`. It knows no model, no tokenizer and no request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aft_harness.engine.rows import Piece, Row, best_fit, grouped, stats

WIDTHS = (128, 160, 192, 224, 256, 288, 320, 352, 384, 448, 512, 640, 768, 1024, 1280, 1536, 2048, 3072, 4096)
"""Row widths that are worth a try."""

_USUAL_WIDTH = 256
_SAMPLED_LEAVES = 4000  # what a width is chosen by: enough to tell, however many leaves there are


class Trie:
    """The trie of token sequences, which can be laid out in rows of any width.

    The rows depend on the arguments alone, and hold every sequence exactly once.

    Attributes:
        leaves: in the order of their tokens.
        shared: how many tokens each leaf begins with as the next one does; 0 for the last.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], tails: Sequence[int]) -> None:
        """Sorts the sequences into the leaves of their trie.

        Args:
            sequences: token ids of each sequence, none empty.
            tails: how many of its last tokens the caller wants to find again, at least 1, for each sequence.

        Raises:
            ValueError: an empty sequence, or a tail that its sequence doesn't have.
        """
        if len(sequences) != len(tails):
            raise ValueError(f"{len(sequences)} sequences but {len(tails)} tails")
        for index, (sequence, tail) in enumerate(zip(sequences, tails, strict=True)):
            if not 1 <= tail <= len(sequence):
                raise ValueError(f"sequence {index}: a tail of {tail} does not fit {len(sequence)} tokens")
        self._tails = tails
        self.leaves, self.shared = _leaves(sequences)

    def choose_width(self, max_tokens: int, *, attention_cost: float, widths: Sequence[int] = WIDTHS) -> int:
        """Find the row width at which scoring these sequences costs least.

        Wide rows lay shared prefixes out less often; but with a dense mask every token pays for every column of its
        row, padding included. A batch of B rows of W columns is taken to cost B * W * (1 + W * attention_cost). Of very
        many sequences the first in the order of their tokens stand for all.

        Args:
            max_tokens: as for `rows.batches`; wider rows are not considered.
            attention_cost: cost of one more key column for one token, relative to all else the token costs.
            widths: the candidates; one that is too narrow for the longest sequence counts as the length of that
                sequence.

        Returns:
            The cheapest width, the narrowest of equals. Never narrower than the longest sequence.

        Raises:
            ValueError: no candidates.
        """
        if not widths:
            raise ValueError("no candidate widths")
        longest = max((len(leaf.tokens) for leaf in self.leaves), default=1)
        lengths = [len(leaf.tokens) for leaf in self.leaves[:_SAMPLED_LEAVES]]
        shared = [*self.shared[: len(lengths) - 1], 0] if lengths else []

        def cost(width: int) -> float:
            groups = grouped([piece.size for piece in _plan(lengths, shared, width)], max_tokens)
            shapes = ((len(group), group[0]) for group in groups)
            return sum(count * widest * (1 + widest * attention_cost) for count, widest in shapes)

        return min(sorted({max(min(width, max_tokens), longest) for width in widths}), key=cost)

    def rows(self, width: int) -> list[Row]:
        """Lay the sequences out in rows that share their common prefixes.

        With `width=1` every row is one plain causal chain (a sequence, and those that are equal to it or a prefix of
        it), which is what a model needs that takes no tree mask.

        Args:
            width: most columns of a row; a sequence longer than this gets a row of its own length.

        Returns:
            Rows which together hold every sequence exactly once.

        Raises:
            ValueError: a width below 1.
        """
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        pieces = _plan([len(leaf.tokens) for leaf in self.leaves], self.shared, width)
        return [_row([self.leaves[index] for index in sorted(piece.parts)], self._tails) for piece in pieces]


def pack(sequences: Sequence[Sequence[int]], tails: Sequence[int], width: int) -> list[Row]:
    """Lay sequences out in rows of a known width: `Trie(sequences, tails).rows(width)`.

    Raises:
        ValueError: what `Trie` or `Trie.rows` refuses.
    """
    return Trie(sequences, tails).rows(width)


def distinct_tokens(sequences: Sequence[Sequence[int]]) -> int:
    """How many columns sequences take in rows of a usual width, in which common prefixes are laid out once."""
    return stats(pack(sequences, [1] * len(sequences), _USUAL_WIDTH))[0]


@dataclass(slots=True)
class Leaf:
    """A path from the root of the trie to a leaf, and the sequences that end on the path.

    Attributes:
        tokens: int32, from the root to the leaf.
        members: of each sequence its length, and its index; the longest is the whole path.
    """

    tokens: NDArray[np.int32]
    members: list[tuple[int, int]]


def _leaves(sequences: Sequence[Sequence[int]]) -> tuple[list[Leaf], list[int]]:
    """Sort sequences into the leaves of their trie.

    A sequence that is equal to another or a prefix of it needs no columns of its own and joins the other's leaf.

    Returns:
        The leaves in sorted order, and for each the length of the prefix it shares with the next (0 for the last).
    """
    lengths = [len(sequence) for sequence in sequences]
    flat = np.fromiter(chain.from_iterable(sequences), dtype=np.int32, count=sum(lengths))
    paths = [flat[start:end] for start, end in pairwise(accumulate(lengths, initial=0))]
    # Big-endian bytes sort as the tokens do, at the speed of memcmp: long prefixes shared by thousands cost nothing.
    keys = [path.astype(">i4").tobytes() for path in paths]

    leaves: list[Leaf] = []
    shared: list[int] = []
    for index in sorted(range(len(paths)), key=keys.__getitem__):
        path = paths[index]
        common = _common_prefix(leaves[-1].tokens, path) if leaves else 0
        if leaves and common == len(leaves[-1].tokens):
            leaves[-1].tokens = path
            leaves[-1].members.append((len(path), index))
        else:
            leaves.append(Leaf(path, [(len(path), index)]))
            shared.append(common)
    # Extending a leaf leaves the prefix it shares with the leaf before unchanged: they had parted already.
    return leaves, [*shared, 0][1:]


def _common_prefix(left: NDArray[np.int32], right: NDArray[np.int32]) -> int:
    shorter = min(len(left), len(right))
    differs = left[:shorter] != right[:shorter]
    first = int(differs.argmax())
    return first if differs[first] else shorter


def _plan(lengths: Sequence[int], shared: Sequence[int], width: int) -> list[Piece]:
    """Distribute leaves over rows.

    Walks the trie bottom-up. At each branching node the pieces below it are fitted together into as few pieces as the
    width allows, and these stay together further up. So a document's endings meet at its context first, then documents
    at their few-shot prefix, and at the root whatever is left fills the rows. Even a prefix of a few tokens is worth
    this: pieces grow coarser and rows a little less full, but fewer tokens are laid out, padding included.

    Args:
        lengths: tokens on the path to each leaf, in sorted order.
        shared: tokens that each leaf shares with the next; 0 for the last.
        width: most columns of a piece of several leaves.

    Returns:
        One piece of leaves for each row. Its size is exactly what the row will take: pieces that could not be joined at
        the prefix they share never meet further up, where joining them would take more.
    """
    pieces: list[Piece] = []
    nodes = [(0, 0)]  # depth and first piece of the branching nodes on the path to the current leaf
    for leaf, (length, common) in enumerate(zip(lengths, shared, strict=True)):
        first = len(pieces)
        pieces.append(Piece(length, [leaf]))
        while nodes[-1][0] > common:
            depth, first = nodes.pop()
            pieces[first:] = best_fit(pieces[first:], depth, width)
        if nodes[-1][0] < common:
            nodes.append((common, first))
    return best_fit(pieces, 0, width)


def _row(leaves: Sequence[Leaf], tails: Sequence[int]) -> Row:
    """Lay leaves, in sorted order, out depth-first in one row."""
    common = [0, *(_common_prefix(left.tokens, right.tokens) for left, right in pairwise(leaves))]
    size = sum(len(leaf.tokens) - prefix for leaf, prefix in zip(leaves, common, strict=True))
    tokens = np.empty(size, dtype=np.int64)
    depth = np.empty(size, dtype=np.int64)
    subtree_end = np.full(size, size, dtype=np.int64)
    path = np.empty(0, dtype=np.int64)  # columns from the root to the current leaf
    members: list[int] = []
    columns: list[Tensor] = []
    end = 0
    for leaf, prefix in zip(leaves, common, strict=True):
        start, end = end, end + len(leaf.tokens) - prefix
        subtree_end[path[prefix:]] = start
        path = np.concatenate([path[:prefix], np.arange(start, end)])
        tokens[start:end] = leaf.tokens[prefix:]
        depth[start:end] = np.arange(prefix, len(leaf.tokens))
        on_path = torch.from_numpy(path)
        for length, member in leaf.members:
            members.append(member)
            columns.append(on_path[length - tails[member] : length])
    return Row(
        torch.from_numpy(tokens), torch.from_numpy(depth), torch.from_numpy(subtree_end), tuple(members), tuple(columns)
    )
