"""Where in a model a bias does what a booster does: measured on a miniature, not looked up in a list of architectures.

A vector that is added to a decoder layer's output equals a bias of one of its linear layers wherever nothing but
additions and a fixed factor stand between the two. Here a miniature is steered once by a booster's hooks and once by
biases, and the logits are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from aft_harness.boosters.booster import Booster
from aft_harness.engine.decoder import decoder_layers, hidden_size
from aft_harness.engine.skeleton import FAILURES
from aft_harness.engine.steering import Steering, recorded
from aft_harness.errors import BoosterError, ExportError, ModelError
from aft_harness.publish.export.miniature import logits, miniature, with_weights_of
from aft_harness.text import reason

_CLOSE = 1e-4
"""Largest difference of logits, in units of the booster's effect on them. A miniature runs in float64, but norms and
softmaxes of transformers run in float32 there, too; what computes something else differs by a tenth or more."""


@dataclass(frozen=True)
class Site:
    """A linear layer whose bias changes the output of its decoder layer.

    Attributes:
        name: Of the linear layer inside the decoder layer, such as `mlp.down_proj`.
        factor: By how much a bias of 1 changes the decoder layer's output: 1, unless a model scales its residuals.
        has_bias: Whether the linear layer has a bias already.
        is_linear: Whether it is a `torch.nn.Linear`. GPT-2's class is not, and keeps its weight transposed.
    """

    name: str
    factor: float
    has_bias: bool
    is_linear: bool


def find_site(source: PreTrainedConfig, layers: Sequence[int], target: PreTrainedConfig | None = None) -> Site:
    """The linear layer whose bias does in models of `target` what a booster does in models of `source`.

    Args:
        source: Of the model that the booster is for.
        layers: Of the booster.
        target: Of the model that gets the biases, with the same weights otherwise; the same by default.

    Raises:
        ExportError: There is none, or the two kinds do not compute the same.
    """
    model = miniature(source)
    other = model if target is None else with_weights_of(model, target)
    generator = torch.Generator().manual_seed(1)
    try:
        vectors = {layer: torch.randn(hidden_size(model), generator=generator) for layer in layers}
        plain = logits(model)
        with Steering(model, Booster.static(vectors)):
            expected = logits(model)
        allowed = _CLOSE * float((expected - plain).abs().max())
        for site in _candidates(other, layers, vectors[layers[0]]):
            biases = {layer: vector / site.factor for layer, vector in vectors.items()}
            with biased(other, site.name, biases):
                if float((logits(other) - expected).abs().max()) <= allowed:
                    return site
    except (BoosterError, ModelError) as error:
        raise ExportError(str(error)) from None
    except FAILURES as error:
        why = reason(error)
        raise ExportError(f"{source.model_type}: a small model of this kind does not run ({why})") from None
    raise ExportError(
        f"in a model of type {source.model_type} no linear layer's bias is added to the decoder layer's output as it "
        "is (what its MLP gives is normalised, weighted or split first)"
    )


@contextmanager
def biased(model: PreTrainedModel, name: str, biases: Mapping[int, Tensor]) -> Iterator[None]:
    """Adds to the bias of a linear layer of some decoder layers, in this block.

    Raises:
        AttributeError: One of the decoder layers has no such linear layer.
    """
    layers = decoder_layers(model)
    linears = {layer: layers[layer].get_submodule(name) for layer in biases}
    before = {layer: linear.bias for layer, linear in linears.items()}
    try:
        for layer, linear in linears.items():
            bias = biases[layer].to(linear.weight)  # type: ignore[arg-type]
            linear.bias = nn.Parameter(bias if before[layer] is None else before[layer] + bias)  # type: ignore[operator]
        yield
    finally:
        for layer, linear in linears.items():
            linear.bias = before[layer]


def _candidates(model: PreTrainedModel, steered: Sequence[int], vector: Tensor) -> Iterator[Site]:
    """The linear layers, the last first, whose bias the output of the first steered layer follows by a fixed factor."""
    layers, direction, layer = decoder_layers(model), vector.double(), steered[0]
    with recorded(layers, layer) as outputs:
        logits(model)
    shared = set.intersection(*({name for name, _ in layers[other].named_modules()} for other in steered))
    for name, module in reversed(list(layers[layer].named_modules())):
        if not isinstance(module, nn.Linear | Conv1D) or name not in shared:
            continue
        if (module.out_features if isinstance(module, nn.Linear) else module.nf) != len(vector):
            continue
        with biased(model, name, {layer: vector}), recorded(layers, layer) as changed:
            logits(model)
        change = (changed[0] - outputs[0]).double()
        factor = float((change @ direction).mean() / (direction @ direction))
        if factor and float((change - factor * direction).abs().max()) < 1e-9 * abs(factor):
            yield Site(name, round(factor, 9), module.bias is not None, isinstance(module, nn.Linear))
