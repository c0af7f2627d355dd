"""Keys and values of texts that are written side by side, where what several of them begin with stands once.

Knows tensors: segments that are shared, and for each text a tail of its own. Knows nothing of tokens. How a model
attends to what is kept here is `shared_attention.py`'s work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

_STEP = 32
"""Columns by which tails grow. They stand in memory without gaps, which matrix products in half precision want."""


@dataclass(eq=False)
class Segment:
    """A run of tokens that several texts have in common, computed once.

    Attributes:
        length: Tokens.
        keys: By decoder layer, [key heads, length, size of a head].
        values: Likewise.
    """

    length: int
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Level:
    """Segments of different texts, side by side in one batch: at most one a text.

    Attributes:
        segments: They, in their order.
        keys: By decoder layer, [segments, key heads, width, size of a head].
        values: Likewise.
        mask: What is added to the scores, [segments, 1, 1, width]; None where nothing is padding.
        order: Texts by segment, int64 [segments, most texts a segment], filled up with text 0.
        places: For each text of the batch its place in `order`, flattened, int64 [texts].
        absent: Texts without a segment, bool [texts]; None where all have one.
    """

    segments: Sequence[Segment]
    keys: list[Tensor]
    values: list[Tensor]
    mask: Tensor | None
    order: Tensor
    places: Tensor
    absent: Tensor | None


def level_of(segments: Sequence[Segment | None], dtype: torch.dtype, before: Level | None = None) -> Level | None:
    """The level in which each text has the segment given, or none; None where no text has one.

    Args:
        segments: One a text.
        dtype: Of the model's activations.
        before: A level whose tensors serve again if it has the same segments.
    """
    distinct = list(dict.fromkeys(segment for segment in segments if segment is not None))
    if not distinct:
        return None
    if before is not None and set(before.segments) == set(distinct):
        distinct = list(before.segments)
    else:
        before = None
    device, width = distinct[0].keys[0].device, max(segment.length for segment in distinct)
    members: list[list[int]] = [[] for _ in distinct]
    places = []
    for text, segment in enumerate(segments):
        group = members[0 if segment is None else distinct.index(segment)]
        places.append((group, len(group)))
        group.append(text)
    most = max(map(len, members))
    starts = {id(group): number * most for number, group in enumerate(members)}
    order = [group + [0] * (most - len(group)) for group in members]
    mask = None
    if any(segment.length < width for segment in distinct):
        lengths = torch.tensor([segment.length for segment in distinct], device=device)
        mask = _hidden(torch.arange(width, device=device) >= lengths[:, None], dtype)
    absent = [segment is None for segment in segments]
    return Level(
        segments=distinct,
        keys=before.keys if before else _side_by_side([segment.keys for segment in distinct], width),
        values=before.values if before else _side_by_side([segment.values for segment in distinct], width),
        mask=mask,
        order=torch.tensor(order, device=device),
        places=torch.tensor([starts[id(group)] + place for group, place in places], device=device),
        absent=torch.tensor(absent, device=device) if any(absent) else None,
    )


def _side_by_side(tensors: Sequence[list[Tensor]], width: int) -> list[Tensor]:
    if len(tensors) == 1:
        return [layer.unsqueeze(0).contiguous() for layer in tensors[0]]
    pad = torch.nn.functional.pad
    return [
        torch.stack([pad(part, (0, 0, 0, width - part.shape[1])) for part in layer])
        for layer in zip(*tensors, strict=True)
    ]


def _hidden(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """The additive mask [rows, 1, 1, width] that hides what is True in [rows, width]."""
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, torch.finfo(dtype).min)[:, None, None, :]


class SharedCache(Cache):
    """The cache that a model is given, in one of two modes: prompts are read, or every text gets one more token.

    Attributes:
        lengths: Tokens in the tail of each text, by its place in the batch.
        reading: Segments that what is being read follows; None while texts are written.
        levels: While texts are written, what they share.
        mask: While texts are written, what is added to the scores of their tails, [texts, 1, 1, width].
        layer: The decoder layer that was updated last.
    """

    def __init__(self, texts: int, columns: int, dtype: torch.dtype) -> None:
        """Holds nothing; memory is taken when a layer is first updated.

        Args:
            texts: How many are written at once at most.
            columns: Tokens that a tail may have.
            dtype: Of the model's activations.
        """
        super().__init__(layers=[])
        self._texts, self._columns, self._dtype = texts, columns, dtype
        self._width = 0  # columns that the tails have now
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._read: Segment | None = None
        self._columns_of_step: tuple[Tensor, Tensor] | None = None
        self.lengths: list[int] = []
        self.reading: Sequence[Segment] | None = None
        self.levels: Sequence[Level] = ()
        self.mask: Tensor | None = None
        self.layer = -1

    def read(self, chain: Sequence[Segment]) -> Segment:
        """From now on what a model is given is read after `chain`; returns where it goes, [rows, ...] by layer."""
        self.reading, self._read = tuple(chain), Segment(0)
        return self._read

    def write(self, levels: Sequence[Level], device: torch.device) -> None:
        """From now on each text in `lengths` gets one token a pass, at the end of its tail."""
        self.reading, self.levels = None, levels
        count = len(self.lengths)
        ends = torch.tensor(self.lengths, device=device)
        self._columns_of_step = torch.arange(count, device=device), ends
        self._grow(max(self.lengths) + 1)
        self.mask = _hidden(torch.arange(self._width, device=device) > ends[:, None], self._dtype)

    def written(self) -> None:
        """Every tail has become longer by one token."""
        self.lengths = [length + 1 for length in self.lengths]

    def enter(self, begun: Segment | None = None) -> None:
        """Adds a text to the end of the batch, whose tail begins with a segment."""
        place = len(self.lengths)
        self.lengths.append(begun.length if begun else 0)
        if begun:
            self._grow(begun.length)
            for kept, new in ((self._keys, begun.keys), (self._values, begun.values)):
                for layer, part in enumerate(new):
                    self._buffer(kept, layer, part)[place, :, : begun.length] = part

    def leave(self, place: int) -> None:
        """Takes a text out of the batch; the last one takes its place."""
        last = self.lengths.pop()
        if place == len(self.lengths):
            return
        self.lengths[place] = last
        for kept in (self._keys, self._values):
            for buffer in kept.values():
                buffer[place, :, :last] = buffer[len(self.lengths), :, :last]

    def _grow(self, wanted: int) -> None:
        """Gives the tails at least so many columns."""
        if wanted <= self._width:
            return
        before, self._width = self._width, min(-(-wanted // _STEP) * _STEP, self._columns)
        for kept in (self._keys, self._values):
            for layer, old in list(kept.items()):
                del kept[layer]
                self._buffer(kept, layer, old)[:, :, :before] = old

    def _buffer(self, kept: dict[int, Tensor], layer: int, like: Tensor) -> Tensor:
        if layer not in kept:
            # What is hidden is multiplied by zero, and must be a number for that.
            kept[layer] = like.new_zeros(self._texts, like.shape[-3], self._width, like.shape[-1])
        return kept[layer]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Takes keys and values of new tokens; returns those of all tokens of the tails."""
        self.layer = layer_idx
        if self.reading is not None:
            assert self._read is not None
            self._read.keys.append(key_states)
            self._read.values.append(value_states)
            return key_states, value_states
        assert self._columns_of_step is not None and self.mask is not None
        rows, ends = self._columns_of_step
        found = []
        for kept, new in ((self._keys, key_states), (self._values, value_states)):
            buffer = self._buffer(kept, layer_idx, new)
            buffer[rows, :, ends] = new[:, :, 0]
            found.append(buffer[: len(rows)])
        return found[0], found[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Zero: positions are always given."""
        return 0

    def get_mask_sizes(self, query_length: Any, layer_idx: int) -> tuple[int, int]:
        """Not asked for where attention makes its own mask."""
        return int(query_length), 0
