"""Examples laid out in rows once, with the frozen lower layers run once: what training reads again and again.

Knows requests and the scoring engine; examples are indices here. Knows nothing of losses, optimisers or boosters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from aft_harness.engine import rows as rows_module
from aft_harness.engine.footprint import Footprint
from aft_harness.engine.memory import trim
from aft_harness.engine.rows import Batch, Row
from aft_harness.engine.scoring import Engine, Request
from aft_harness.engine.trie import pack
from aft_harness.progress import OnProgress, ignore
from aft_harness.training.hidden_states import HiddenStates

TOKENS_PER_PASS = 4096
"""Bound of one forward and backward pass in tokens; a larger batch accumulates gradients over several."""

ROW_WIDTH = 256
"""Columns that examples of one pass are joined to, if none is wider: wider rows waste attention, narrower ones waste
padding."""

MOST_PADDING = {"cpu": 64, "accelerator": 4096}
"""Padding columns that cost about what another pass does: it starts thousands of operations on a few tokens."""


class _Size(NamedTuple):
    """Of the rows of some examples: how many, their columns, those of the widest, and positions that predict."""

    rows: int = 0
    columns: int = 0
    widest: int = 0
    predictions: int = 0

    def beside(self, other: _Size) -> _Size:
        """The size of both together."""
        return _Size(
            self.rows + other.rows,
            self.columns + other.columns,
            max(self.widest, other.widest),
            self.predictions + other.predictions,
        )


class PreparedExamples:
    """Examples by index, each with the requests that are scored of it.

    Nothing below the lowest trained layer depends on the booster: `cache` computes its output once, and every later
    pass starts there.

    Attributes:
        footprint: What passes keep, see `bound`.
        limit: Bytes that a pass may keep, see `bound`.
    """

    def __init__(self, engine: Engine, requests: Sequence[Sequence[Request]]) -> None:
        """Lays the examples out, and tries packed rows on the deepest and widest there will be.

        Args:
            engine: Runs the model.
            requests: Of each example, at least one.
        """
        self._engine = engine
        self._requests = [request for each in requests for request in each]
        self._places: list[range] = []
        for each in requests:
            start = self._places[-1].stop if self._places else 0
            self._places.append(range(start, start + len(each)))
        self._rows: list[Row] = []
        self._rows_of: list[range] = []
        self._lowest = 0
        self._hidden: HiddenStates | None = None
        self.footprint, self.limit = Footprint(0.0, 0.0, 0.0), math.inf
        engine.compare_lengths(self._requests)
        self._lay()
        largest = sorted(range(len(self._rows)), key=lambda index: -len(self._rows[index]))
        with torch.no_grad():
            for batch, _ in self._batches(largest[:8]):
                if self._engine.packed and not self._engine.agrees(batch, self._requests):
                    self._lay()
                    break

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._places)

    @torch.no_grad()
    def cache(self, lowest: int, hidden: HiddenStates, on_progress: OnProgress = ignore) -> None:
        """Computes and keeps the output of the lowest trained layer for every example.

        A model that cannot be resumed there (see `Engine.resumes`) runs in full at each pass instead.

        Args:
            lowest: The lowest trained layer.
            hidden: Where its output is kept; empty.
            on_progress: Called with how many examples are done, and of how many.
        """
        if not self._engine.resumes(rows_module.batches([min(self._rows, key=len)], 1)[0], lowest):
            return
        done = 0
        for chunk in self.chunks(range(len(self))):
            rows = [index for example in chunk for index in self._rows_of[example]]
            found: dict[int, Tensor] = {}
            for batch, parts in self._batches(rows):
                output = self._engine.hidden(batch, lowest)
                for place, indices in enumerate(parts):
                    sizes = [len(self._rows[index]) for index in indices]
                    split = output[place, : sum(sizes)].split(sizes)
                    found.update(zip(indices, split, strict=True))
            for index in rows:  # rows are numbered in the order of the examples, and so are the hidden states
                hidden.append(found[index])
            done += len(chunk)
            on_progress(done, len(self))
        self._lowest, self._hidden = lowest, hidden

    def bound(self, footprint: Footprint, limit: float) -> None:
        """Sets how much a pass may keep for its backward pass, or have at its peak without one.

        Args:
            footprint: What passes keep.
            limit: Bytes. An example that alone takes more is computed layer by layer once more in the backward pass,
                and keeps next to nothing.
        """
        self.footprint, self.limit = footprint, limit

    def loglikelihoods(self, examples: Sequence[int]) -> list[Tensor]:
        """Of the requests of each example, [requests], under whatever steering is in force; differentiable."""
        rows = [index for example in examples for index in self._rows_of[example]]
        found: dict[int, Tensor] = {}
        large = torch.is_grad_enabled() and self._kept(self._size(examples)) > self.limit
        if large:
            trim()  # each such pass would scatter its blocks among those of the last
        for batch, parts in self._batches(rows):
            thrifty = self._engine.forward_pass.recomputed(self._lowest) if large else nullcontext()
            with self._resumed(batch, parts), thrifty:
                scores = self._engine.score(batch, self._requests, self._softmax_dtype)
            found.update(zip(scores.members, scores.loglikelihoods.unbind(), strict=True))
        return [torch.stack([found[place] for place in self._places[example]]) for example in examples]

    def predictions(self, examples: Sequence[int]) -> list[Tensor]:
        """Logits that predict the continuation of each example's only request, [tokens, vocabulary]; differentiable."""
        rows = [index for example in examples for index in self._rows_of[example]]
        found: dict[int, Tensor] = {}
        for batch, parts in self._batches(rows):
            with self._resumed(batch, parts):
                found |= self._engine.predictions(batch, self._requests)
        return [found[place] for example in examples for place in self._places[example]]

    def residual(self, layers: Sequence[int], examples: Sequence[int]) -> dict[int, Tensor]:
        """Outputs of some layers on some examples, by layer, [tokens, hidden], under whatever steering is in force.

        Args:
            layers: None of them below the lowest trained one.
            examples: What to run.
        """
        found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        rows = [index for example in examples for index in self._rows_of[example]]
        for batch, parts in self._batches(rows):
            with self._resumed(batch, parts):
                outputs = self._engine.outputs(batch, layers)
            for layer, hidden in outputs.items():
                found[layer] += [states[: len(row)] for states, row in zip(hidden, batch.rows, strict=True)]
        return {layer: torch.cat(parts) for layer, parts in found.items()}

    def chunks(self, examples: Sequence[int]) -> Iterator[list[int]]:
        """Consecutive examples whose rows fit one pass, and what it keeps if gradients are wanted."""
        chunk: list[int] = []
        size = _Size()
        for example in examples:
            together = size.beside(self._size([example]))
            large = torch.is_grad_enabled() and self._kept(together) > self.limit
            if chunk and (together.columns > TOKENS_PER_PASS or large):
                yield chunk
                chunk, together = [], self._size([example])
            chunk.append(example)
            size = together
        if chunk:
            yield chunk

    @property
    def cached(self) -> bool:
        """Whether passes start at cached states, and run no layer below."""
        return self._hidden is not None

    @property
    def columns(self) -> int:
        """Of the rows of all examples: what is run of them once."""
        return sum(map(len, self._rows))

    def kept(self, examples: Sequence[int]) -> float:
        """Bytes that a pass over examples keeps for its backward pass, or the bound where that is less."""
        return min(self._kept(self._size(examples)), self.limit)

    def _size(self, examples: Sequence[int]) -> _Size:
        widths = [len(self._rows[index]) for example in examples for index in self._rows_of[example]]
        places = (place for example in examples for place in self._places[example])
        predictions = sum(len(self._requests[place].continuation) for place in places)
        return _Size(len(widths), sum(widths), max(widths, default=0), predictions)

    def _kept(self, size: _Size) -> float:
        """Bytes that a pass over examples of this size keeps."""
        width = max(ROW_WIDTH, size.widest) if size.rows > 1 else size.widest
        return self.footprint.of(size.columns, width, size.predictions)

    def _lay(self) -> None:
        """Lays each example in rows of its own, one trie where packed rows are right."""
        self._rows, self._rows_of = [], []
        for places in self._places:
            sequences = [self._requests[place].inputs for place in places]
            tails = [len(self._requests[place].continuation) for place in places]
            width = sum(map(len, sequences)) if self._engine.packed else 1
            start = len(self._rows)
            self._rows += [
                replace(row, members=tuple(places[member] for member in row.members))
                for row in pack(sequences, tails, width)
            ]
            self._rows_of.append(range(start, len(self._rows)))

    def _batches(self, rows: Sequence[int]) -> Iterator[tuple[Batch, list[tuple[int, ...]]]]:
        """Batches over some rows, each with the indices of the rows that its rows are made of."""
        width = max(ROW_WIDTH, *(len(self._rows[index]) for index in rows)) if self._engine.packed else 1
        groups = rows_module.joined([self._rows[index] for index in rows], width)
        parts = {id(row): tuple(rows[place] for place in places) for row, places in groups}
        most = MOST_PADDING["cpu" if self._engine.device.type == "cpu" else "accelerator"]
        bound = min(TOKENS_PER_PASS, self.footprint.columns_without_gradient(width, self.limit))
        tokens = 1 if self._engine.probe.alone else int(bound)
        for batch in rows_module.batches([row for row, _ in groups], tokens, most):
            yield batch, [parts[id(row)] for row in batch.rows]

    def _resumed(self, batch: Batch, parts: Sequence[tuple[int, ...]]) -> AbstractContextManager[None]:
        if self._hidden is None:
            return nullcontext()
        first = self._hidden[parts[0][0]]
        hidden = first.new_zeros(*batch.input_ids.shape, first.shape[-1])
        for place, indices in enumerate(parts):
            states = torch.cat([self._hidden[index] for index in indices])
            hidden[place, : len(states)] = states
        return self._engine.resumed(self._lowest, hidden)

    @property
    def _softmax_dtype(self) -> torch.dtype:
        return torch.promote_types(self._engine.dtype, torch.float32)
