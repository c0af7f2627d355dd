"""Rows of tokens that a model is run on, batches of them, and which column may attend to which.

A row holds one or several tries of token sequences, laid out depth-first. Token `j` is an ancestor of token `i`, or
`i` itself, exactly if `j <= i < subtree_end[j]`, and a token's position id is its depth. So every sequence meets the
tokens, positions and visibility it would meet in a row of its own, and siblings never see each other.

This module knows integers and tensors. It knows no model, no tokenizer and no request, and not how sequences become
rows, which is `trie.py`'s work. Whether a model can take such a mask, and what to do with the logits, is the caller's
business.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Row:
    """Tries of token sequences, laid out depth-first one after another.

    Attributes:
        tokens: int64 [n], token ids.
        depth: int64 [n], depth in a trie: the position ids.
        subtree_end: int64 [n], the column after the last descendant of each token.
        members: indices of the sequences laid out in this row, in the order of a trie; equal sequences share columns.
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


class Piece(NamedTuple):
    """Parts that stay together in one row: their indices, and the columns they take together."""

    size: int
    parts: list[int]


def stats(rows: Sequence[Row]) -> tuple[int, int]:
    """Count the tokens that are laid out in rows, and the tokens of the sequences they stand for."""
    laid = sum(len(row) for row in rows)
    requested = sum(int(row.depth[tail[-1]]) + 1 for row in rows for tail in row.tails)
    return laid, requested


def batches(rows: Sequence[Row], max_tokens: int, most_padding: int | None = None) -> list[Batch]:
    """Put rows of similar width together, the widest first so that running out of memory shows at once.

    Args:
        rows: what to put together, on one device.
        max_tokens: most columns of a batch, padding included; a row wider than this is a batch of its own.
        most_padding: most padding columns of a batch: what is worth another pass. None sets no bound.

    Returns:
        Batches which together hold every row exactly once. No row is less than half as wide as its batch.
    """
    by_width = sorted(rows, key=len, reverse=True)
    ordered = iter(by_width)
    groups = grouped([len(row) for row in by_width], max_tokens, most_padding)
    return [pad([next(ordered) for _ in group]) for group in groups]


def fitted(widths: Sequence[int], width: int) -> list[list[int]]:
    """Distribute rows over few wider ones, by best fit decreasing.

    Args:
        widths: columns of each row.
        width: most columns of a wider row, unless a single row has more.

    Returns:
        For each wider row, the indices of the rows that it is made of, ascending.
    """
    pieces = [Piece(size, [index]) for index, size in enumerate(widths)]
    return [sorted(piece.parts) for piece in best_fit(pieces, 0, width)]


def joined(rows: Sequence[Row], width: int) -> list[tuple[Row, tuple[int, ...]]]:
    """Put rows one after another into fewer, wider rows; their tokens still don't see each other.

    Args:
        rows: rows on one device.
        width: most columns of a wider row, unless a single row has more.

    Returns:
        Each new row with the indices of the rows it is made of, in order, so that what is stored by row can be joined
        the same way.
    """
    groups = fitted([len(row) for row in rows], width)
    return [(_concatenated([rows[index] for index in group]), tuple(group)) for group in groups]


def best_fit(pieces: Sequence[Piece], depth: int, width: int) -> list[Piece]:
    """Join pieces into few pieces of at most `width` columns, by best fit decreasing.

    Args:
        pieces: what to join.
        depth: tokens that all of them begin with, which a joined piece lays out once.
        width: most columns of a joined piece; a wider piece stays as it is.
    """
    wider: list[Piece] = []
    spaces: list[tuple[int, int]] = []  # free columns and index of each joined piece, ascending
    for piece in sorted(pieces, key=lambda piece: -piece.size):
        added = piece.size - depth
        tightest = bisect_left(spaces, (added, 0))
        if tightest < len(spaces):
            free, index = spaces.pop(tightest)
            free -= added
            wider[index] = Piece(wider[index].size + added, wider[index].parts + piece.parts)
        else:
            free, index = width - piece.size, len(wider)
            wider.append(piece)
        insort(spaces, (free, index))
    return wider


def grouped(widths: Sequence[int], max_tokens: int, most_padding: int | None = None) -> list[list[int]]:
    """Group the widths of rows into batches, in descending order; the arguments are those of `batches`."""
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


def pad(rows: Sequence[Row]) -> Batch:
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
