"""How much memory a forward pass keeps for its backward pass: measured on short rows, predicted for any.

Knows the scoring engine and autograd. Knows nothing of examples or of how much memory there is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from aft_harness.boosters.injections import StaticInjection
from aft_harness.engine.decoder import hidden_size
from aft_harness.engine.rows import batches
from aft_harness.engine.scoring import Engine, Request
from aft_harness.engine.steering import training_injections
from aft_harness.engine.trie import pack

_WIDTHS = (16, 32, 64)
"""Columns of the rows that are measured. Of these the shortest window of attention is longer than all but tiny ones."""

_LAYERS_AT_ONCE = 2
"""What a pass without gradients has at its peak, in layers: it drops what a layer made once the next one has it."""

_GRADIENT_OF_LOGITS = 2
"""The gradient of the logits is as large as they are, and there while they are."""


@dataclass(frozen=True)
class Footprint:
    """What a pass keeps, in bytes, as a polynomial in the width of its rows.

    Attributes:
        column: For each column of a row.
        pair: For each pair of columns of a row: attention weights and masks.
        prediction: For each position whose logits are wanted.
        layers: Decoder layers that keep this.
    """

    column: float
    pair: float
    prediction: float
    layers: int = 1

    def of(self, columns: int, width: int, predictions: int) -> float:
        """Bytes that a pass keeps at most.

        Args:
            columns: Of all rows together.
            width: Of the widest row.
            predictions: Positions whose logits are wanted.
        """
        return columns * (self.column + self.pair * width) + predictions * self.prediction

    def columns_without_gradient(self, width: int, limit: float) -> float:
        """Columns of all rows of a pass that keeps nothing, and has at most `limit` bytes at its peak.

        Args:
            width: Of the widest row.
            limit: Bytes.
        """
        column = (self.column + self.pair * width) * min(_LAYERS_AT_ONCE / self.layers, 1.0)
        return limit / column if column else math.inf


def footprint(engine: Engine, lowest: int) -> Footprint:
    """Measures what a pass keeps that is differentiated down to a layer.

    Args:
        engine: Runs the model, and has found out whether rows may be packed.
        lowest: The lowest layer that is trained; nothing below it is kept.
    """
    narrow, middle, wide = (_kept(engine, lowest, width, 1) for width in _WIDTHS)
    predicted = _kept(engine, lowest, _WIDTHS[1], 1 + _WIDTHS[0])
    first, second, third = _WIDTHS
    slopes = (middle - narrow) / (second - first), (wide - middle) / (third - second)
    pair = max((slopes[1] - slopes[0]) / (third - first), 0.0)
    column = max(slopes[0] - pair * (first + second), 0.0)
    prediction = max((predicted - middle) / _WIDTHS[0], 0.0)
    return Footprint(column, pair, _GRADIENT_OF_LOGITS * prediction, max(len(engine.layers) - lowest - 1, 1))


def _kept(engine: Engine, lowest: int, width: int, predictions: int) -> int:
    """Bytes that a pass over one row keeps."""
    request = Request((1,) * (width + 1 - predictions), (1,) * predictions)
    (batch,) = batches(pack([request.inputs], [predictions], width), width)
    vector = torch.zeros(hidden_size(engine.model), device=engine.device, requires_grad=True)
    injections = {lowest: StaticInjection(vector)}
    with torch.enable_grad(), training_injections(engine.layers, injections), _recorded(engine.model) as storages:
        scores = engine.score(batch, [request], torch.float32)
        kept = sum(storages.values())
        del scores  # which held the storages until now, so that each has an address of its own
    return kept


@contextmanager
def _recorded(model: torch.nn.Module) -> Iterator[Mapping[int, int]]:
    """Collects the sizes of the storages that autograd keeps in this block, by address; the model's are not its own."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # what an operation returns and keeps would otherwise keep itself alive for ever

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield storages
