"""Steering a running model: put a booster in, take it out, record what a layer gives.

Knows boosters and forward hooks. Knows nothing of tasks, tokens or files. Besides `partial.py` this is the only place
that hooks a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from aft_harness.boosters.booster import PROVIDED, Booster
from aft_harness.boosters.injections import Injection
from aft_harness.engine.decoder import decoder_layers, hidden_size
from aft_harness.errors import BoosterError, ModelError


class Steering:
    """A booster being applied to a model; a context manager, or `attach()` and `detach()`.

    While attached, the output `h` of each of the booster's layers becomes `h + delta(h)`, in the dtype and on the
    device of `h`. At strength 0 nothing is hooked, so that the model is unchanged bit for bit.

    Example:
        >>> with Steering(model, booster, strength=0.5):
        ...     model.generate(**inputs)
    """

    def __init__(
        self, model: nn.Module, booster: Booster, strength: float = 1.0, *, layers_path: str | None = None
    ) -> None:
        """Checks that the booster fits; the model is not touched before `attach()`.

        Args:
            model: The model to steer.
            booster: What to add.
            strength: Factor on every delta.
            layers_path: See `decoder_layers`.

        Raises:
            BoosterError: The booster is for another hidden size or more layers.
            ModelError: The model cannot be hooked.
        """
        if hasattr(model, "_orig_mod"):
            raise ModelError("a compiled model ignores hooks: steer the model first, then call torch.compile")
        self._layers = decoder_layers(model, layers_path)
        if booster.hidden_size != hidden_size(model):
            raise BoosterError(
                f"the booster is for a hidden size of {booster.hidden_size}; {type(model).__name__} has "
                f"{hidden_size(model)}"
            )
        if booster.layers[-1] >= len(self._layers):
            raise BoosterError(
                f"the booster's layer {booster.layers[-1]} is out of range: {type(model).__name__} has layers 0 to "
                f"{len(self._layers) - 1}"
            )
        effective = booster.scaled(strength)
        self._injections: Mapping[int, Injection] = {} if effective.is_zero else effective.injections
        self._handles: list[RemovableHandle] = []

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers whose output changes, ascending; empty when nothing does."""
        return tuple(self._injections)

    def attach(self) -> Self:
        """Starts steering; attaching twice changes nothing."""
        if not self._handles:
            self._handles = [
                self._layers[layer].register_forward_hook(injection_hook(injection))
                for layer, injection in self._injections.items()
            ]
        return self

    def detach(self) -> None:
        """Stops steering; detaching twice changes nothing."""
        while self._handles:
            self._handles.pop().remove()

    def __enter__(self) -> Self:
        """Attaches."""
        return self.attach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detaches, after an exception too."""
        self.detach()


def injection_hook(injection: Injection) -> Callable[[nn.Module, Any, Any], Any]:
    """A forward hook that adds the injection's delta to a layer's output, a tensor or a tuple that starts with it."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return output + injection.delta(output)
        if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
            return (output[0] + injection.delta(output[0]), *output[1:])
        raise ModelError(f"{type(module).__name__} returns {type(output).__name__}, which cannot be steered")

    return hook


@contextmanager
def training_injections(layers: nn.ModuleList, injections: Mapping[int, Injection]) -> Iterator[None]:
    """Applies injections whose tensors are being trained, so that gradients reach them.

    Args:
        layers: The decoder layers.
        injections: By layer; unlike `Steering`, a zero injection is hooked too.
    """
    handles = [layers[layer].register_forward_hook(injection_hook(part)) for layer, part in injections.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def recorded(layers: nn.ModuleList, layer: int) -> Iterator[list[Tensor]]:
    """Collects the outputs of one layer, [batch, positions, hidden] each, of every forward pass in the block."""
    outputs: list[Tensor] = []

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs.append(output if isinstance(output, Tensor) else output[0])

    handle = layers[layer].register_forward_hook(hook)
    try:
        yield outputs
    finally:
        handle.remove()


PROVIDED["applied_to"] = lambda booster, model, strength: Steering(model, booster, strength)
