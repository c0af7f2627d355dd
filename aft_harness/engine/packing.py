"""Token sequences in, trie-packed rows out: tokens, position ids and who sees whom.

Requests that score a language model share most of their tokens: the few-shot prefix of a task, the context of a
document's choices. Sorted by token ids the sequences form a trie, and the trie is laid out depth-first in a row. Token
`j` is then an ancestor of token `i`, or `i` itself, exactly if `j <= i < subtree_end[j]`, and a token's position id is
its depth. Every sequence meets the tokens, positions and visibility it would meet in a row of its own; siblings never
see each other. Sharing, packing and the lack of padding are one mechanism.

This module knows integers and tensors. It knows no model, no tokenizer and no request: whether a model can take such a
mask, and what to do with the logits, is the caller's business.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WIDTHS = (128, 160, 192, 224, 256, 288, 320, 352, 384, 448, 512, 640, 768, 1024, 1280, 1536, 2048, 3072, 4096)
_JUDGED = 4000  # leaves that a width is judged by: enough to tell, however many there are


@dataclass(frozen=True, slots=True)
class Row:
    """One trie, laid out depth-first.

    Attributes:
        tokens: int64 [n], token ids.
        depth: int64 [n], depth in the trie: the position ids.
        subtree_end: int64 [n], the column after the last descendant of each token.
        members: indices of the sequences laid in this row, in the order of the trie; equal sequences share columns.
        tails: per member, int64: the columns of the last tokens of that sequence, as many as were asked for, in order.
    """

    tokens: Tensor
    depth: Tensor
    subtree_end: Tensor
    members: tuple[int, ...]
    tails: tuple[Tensor, ...]

    def __len__(self) -> int:
        """Number of columns."""
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded on the right to one width.

    A padding column holds token 0 at position 0 and sees itself only, so that no softmax runs over nothing.

    Attributes:
        input_ids: int64 [B, W].
        position_ids: int64 [B, W].
        subtree_end: int64 [B, W].
        rows: the B rows without their padding.
    """

    input_ids: Tensor
    position_ids: Tensor
    subtree_end: Tensor
    rows: tuple[Row, ...]


def pack(sequences: Sequence[Sequence[int]], tails: Sequence[int], width: int) -> list[Row]:
    """Lay sequences out in rows that share their common prefixes.

    The result depends on the arguments alone. With `width=1` every row is one plain causal chain (a sequence, and those
    that are equal to it or a prefix of it), which is what a model needs that takes no tree mask.

    Args:
        sequences: token ids of each sequence, none empty.
        tails: how many of its last tokens the caller wants to find again, at least 1, for each sequence.
        width: most columns of a row; a sequence longer than this gets a row of its own length.

    Returns:
        Rows which together hold every sequence exactly once.

    Raises:
        ValueError: an empty sequence, a tail that its sequence doesn't have, or a width below 1.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    _check(sequences, tails)
    leaves, shared = _leaves(sequences)
    pieces = _plan([len(leaf.tokens) for leaf in leaves], shared, width)
    return [_lay([leaves[index] for index in sorted(piece.leaves)], tails) for piece in pieces]


def choose_width(
    sequences: Sequence[Sequence[int]],
    tails: Sequence[int],
    max_tokens: int,
    *,
    attention_cost: float,
    widths: Sequence[int] = WIDTHS,
) -> int:
    """Find the row width at which scoring these sequences costs least.

    Wide rows lay shared prefixes down less often; but with a dense mask every token pays for every column of its row,
    padding included. A batch of B rows of W columns is taken to cost B * W * (1 + W * attention_cost). Of very many
    sequences the first in the order of their tokens stand for all.

    Args:
        sequences: as for `pack`.
        tails: as for `pack`.
        max_tokens: as for `batches`; wider rows are not considered.
        attention_cost: cost of one more key column for one token, relative to all else the token costs.
        widths: the candidates; one that is too narrow for the longest sequence counts as the length of that sequence.

    Returns:
        The cheapest width, the narrowest of equals. Never narrower than the longest sequence.

    Raises:
        ValueError: no candidates, or arguments that `pack` would refuse.
    """
    if not widths:
        raise ValueError("no candidate widths")
    _check(sequences, tails)
    leaves, shared = _leaves(sequences)
    longest = max((len(leaf.tokens) for leaf in leaves), default=1)
    lengths = [len(leaf.tokens) for leaf in leaves[:_JUDGED]]
    shared = [*shared[: len(lengths) - 1], 0] if lengths else []

    def cost(width: int) -> float:
        groups = _grouped([piece.size for piece in _plan(lengths, shared, width)], max_tokens)
        shapes = ((len(group), group[0]) for group in groups)
        return sum(count * widest * (1 + widest * attention_cost) for count, widest in shapes)

    return min(sorted({max(min(width, max_tokens), longest) for width in widths}), key=cost)


def stats(rows: Sequence[Row]) -> tuple[int, int]:
    """Count the tokens that are laid out in rows, and the tokens of the sequences they stand for."""
    laid = sum(len(row) for row in rows)
    requested = sum(int(row.depth[tail[-1]]) + 1 for row in rows for tail in row.tails)
    return laid, requested


def batches(rows: Sequence[Row], max_tokens: int, most_padding: int | None = None) -> list[Batch]:
    """Put rows of similar width together, the widest first so that running out of memory shows at once.

    Args:
        rows: rows from `pack`, on one device.
        max_tokens: most columns of a batch, padding included; a row wider than this is a batch of its own.
        most_padding: most padding columns of a batch: what is worth another pass. None sets no bound.

    Returns:
        Batches which together hold every row exactly once. No row is less than half as wide as its batch.
    """
    by_width = sorted(rows, key=len, reverse=True)
    ordered = iter(by_width)
    groups = _grouped([len(row) for row in by_width], max_tokens, most_padding)
    return [_pad([next(ordered) for _ in group]) for group in groups]


def visible(
    subtree_end: Tensor, position_ids: Tensor, *, window: int | None = None, chunk: int | None = None
) -> Tensor:
    """Say which column each column of a batch may attend to.

    Args:
        subtree_end: int64 [B, W].
        position_ids: int64 [B, W].
        window: sliding window: a token sees itself and the `window - 1` tokens before it, counted in depth.
        chunk: chunked attention: a token sees only those whose depth lies in the same chunk of this size.

    Returns:
        bool [B, W, W], indexed [row, query, key]. Every column sees itself.

    Raises:
        ValueError: a window or chunk below 1.
    """
    for name, value in (("window", window), ("chunk", chunk)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    column = torch.arange(subtree_end.shape[-1], device=subtree_end.device)
    query = column[:, None]
    seen = (column <= query) & (query < subtree_end[:, None, :])
    if window is not None:
        seen &= position_ids[:, None, :] > (position_ids - window)[:, :, None]
    if chunk is not None:
        part = position_ids // chunk
        seen &= part[:, None, :] == part[:, :, None]
    return seen


def additive_mask(visibility: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn visibility into the mask that every attention implementation may add to its scores.

    The lowest finite number stands for "hidden": minus infinity would become NaN where two masks are added.

    Args:
        visibility: bool [B, W, W] from `visible`.
        dtype: the dtype of the model's activations.

    Returns:
        `dtype` [B, 1, W, W]: 0 where visible, the lowest finite number elsewhere.
    """
    hidden = torch.zeros(visibility.shape, dtype=dtype, device=visibility.device)
    return hidden.masked_fill_(~visibility, torch.finfo(dtype).min).unsqueeze(1)


@dataclass(slots=True)
class _Leaf:
    """A path from the root of the trie to a leaf, and the sequences (length, index) that end on the path."""

    tokens: NDArray[np.int32]
    members: list[tuple[int, int]]


class _Piece(NamedTuple):
    """Leaves that stay together in one row, and the columns their trie takes."""

    size: int
    leaves: list[int]


def _check(sequences: Sequence[Sequence[int]], tails: Sequence[int]) -> None:
    if len(sequences) != len(tails):
        raise ValueError(f"{len(sequences)} sequences but {len(tails)} tails")
    for index, (sequence, tail) in enumerate(zip(sequences, tails, strict=True)):
        if not 1 <= tail <= len(sequence):
            raise ValueError(f"sequence {index}: a tail of {tail} does not fit {len(sequence)} tokens")


def _leaves(sequences: Sequence[Sequence[int]]) -> tuple[list[_Leaf], list[int]]:
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

    leaves: list[_Leaf] = []
    shared: list[int] = []
    for index in sorted(range(len(paths)), key=keys.__getitem__):
        path = paths[index]
        common = _common_prefix(leaves[-1].tokens, path) if leaves else 0
        if leaves and common == len(leaves[-1].tokens):
            leaves[-1].tokens = path
            leaves[-1].members.append((len(path), index))
        else:
            leaves.append(_Leaf(path, [(len(path), index)]))
            shared.append(common)
    # Extending a leaf leaves the prefix it shares with the leaf before unchanged: they had parted already.
    return leaves, [*shared, 0][1:]


def _common_prefix(left: NDArray[np.int32], right: NDArray[np.int32]) -> int:
    shorter = min(len(left), len(right))
    differs = left[:shorter] != right[:shorter]
    first = int(differs.argmax())
    return first if differs[first] else shorter


def _plan(lengths: Sequence[int], shared: Sequence[int], width: int) -> list[_Piece]:
    """Distribute leaves over rows.

    Walks the trie bottom-up. At each branching node the pieces below it are fitted together into as few pieces as the
    width allows, and these stay together further up. So a document's endings meet at its context first, then documents
    at their few-shot prefix, and at the root whatever is left fills the rows. Even a prefix of a few tokens is worth
    this: pieces grow coarser and rows a little less full, but fewer tokens are laid, padding included.

    Args:
        lengths: tokens on the path to each leaf, in sorted order.
        shared: tokens that each leaf shares with the next; 0 for the last.
        width: most columns of a piece of several leaves.

    Returns:
        One piece for each row. Its size is exactly what the row will take: pieces that could not be joined at the
        prefix they share never meet further up, where joining them would take more.
    """
    pieces: list[_Piece] = []
    nodes = [(0, 0)]  # depth and first piece of the branching nodes on the path to the current leaf
    for leaf, (length, common) in enumerate(zip(lengths, shared, strict=True)):
        first = len(pieces)
        pieces.append(_Piece(length, [leaf]))
        while nodes[-1][0] > common:
            depth, first = nodes.pop()
            pieces[first:] = _fit(pieces[first:], depth, width)
        if nodes[-1][0] < common:
            nodes.append((common, first))
    return _fit(pieces, 0, width)


def _fit(pieces: Sequence[_Piece], depth: int, width: int) -> list[_Piece]:
    """Join pieces that share a prefix of `depth` tokens into few pieces of at most `width`, by best fit decreasing."""
    joined: list[_Piece] = []
    spaces: list[tuple[int, int]] = []  # free columns and index of each joined piece, ascending
    for piece in sorted(pieces, key=lambda piece: -piece.size):
        added = piece.size - depth
        tightest = bisect_left(spaces, (added, 0))
        if tightest < len(spaces):
            free, index = spaces.pop(tightest)
            free -= added
            joined[index] = _Piece(joined[index].size + added, joined[index].leaves + piece.leaves)
        else:
            free, index = width - piece.size, len(joined)
            joined.append(piece)
        insort(spaces, (free, index))
    return joined


def _lay(leaves: Sequence[_Leaf], tails: Sequence[int]) -> Row:
    """Lay leaves, in sorted order, depth-first in one row."""
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


def _grouped(widths: Sequence[int], max_tokens: int, most_padding: int | None = None) -> list[list[int]]:
    """Group widths, in descending order, into batches."""
    groups: list[list[int]] = []
    padding = 0
    for width in sorted(widths, reverse=True):
        widest = groups[-1][0] if groups else 0
        padding += widest - width
        # A row that would be mostly padding starts a batch: one more forward costs less than the padding.
        fits = 2 * width >= widest and (most_padding is None or padding <= most_padding)
        if groups and (len(groups[-1]) + 1) * widest <= max_tokens and fits:
            groups[-1].append(width)
        else:
            groups.append([width])
            padding = 0
    return groups


def fitted(widths: Sequence[int], width: int) -> list[list[int]]:
    """Distribute rows over few wider ones, by best fit decreasing.

    Args:
        widths: columns of each row.
        width: most columns of a wider row, unless a single row has more.

    Returns:
        For each wider row, the indices of the rows that it is made of, ascending.
    """
    return [
        sorted(piece.leaves) for piece in _fit([_Piece(size, [index]) for index, size in enumerate(widths)], 0, width)
    ]


def joined(rows: Sequence[Row], width: int) -> list[tuple[Row, tuple[int, ...]]]:
    """Puts rows one after another into fewer rows of at most `width` columns; their tokens still don't see each other.

    Returns:
        Each new row with the indices of the rows it is made of, in order, so that what is stored by row can be joined
        the same way.
    """
    groups = fitted([len(row) for row in rows], width)
    return [(_concatenated([rows[index] for index in group]), tuple(group)) for group in groups]


def _pad(rows: Sequence[Row]) -> Batch:
    """Pad rows, the widest of which comes first."""
    shape = (len(rows), len(rows[0]))
    input_ids = rows[0].tokens.new_zeros(shape)
    position_ids = torch.zeros_like(input_ids)
    subtree_end = torch.arange(1, shape[1] + 1, device=input_ids.device).repeat(shape[0], 1)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = row.tokens
        position_ids[index, : len(row)] = row.depth
        subtree_end[index, : len(row)] = row.subtree_end
    return Batch(input_ids, position_ids, subtree_end, tuple(rows))


def _concatenated(rows: Sequence[Row]) -> Row:
    offsets = [0]
    for row in rows:
        offsets.append(offsets[-1] + len(row))
    return Row(
        tokens=torch.cat([row.tokens for row in rows]),
        depth=torch.cat([row.depth for row in rows]),
        subtree_end=torch.cat([row.subtree_end + offset for row, offset in zip(rows, offsets, strict=False)]),
        members=tuple(member for row in rows for member in row.members),
        tails=tuple(tail + offset for row, offset in zip(rows, offsets, strict=False) for tail in row.tails),
    )
