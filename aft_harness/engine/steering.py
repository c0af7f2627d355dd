"""Steering a running model: put a booster in, take it out, record what a layer gives.

Knows boosters and forward hooks. Knows nothing of tasks, tokens or files. Besides `partial.py` this is the only place
that hooks a model.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.utils.hooks import RemovableHandle

from aft_harness.boosters.booster import PROVIDED, Booster
from aft_harness.boosters.injections import Injection, StaticInjection
from aft_harness.engine.decoder import decoder_layers, hidden_size, input_device
from aft_harness.errors import ModelError


class Steering:
    """Applies a booster to a model, as a context manager or with `attach()` and `detach()`.

    While attached, the output `h` of each of the booster's layers becomes `h + delta(h)`, in the dtype and on the
    device of `h`. At strength 0 nothing is hooked and the model is unchanged, bit for bit.

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
            BoosterError: The booster needs another hidden size or more layers.
            ModelError: The model cannot be hooked.
        """
        self._model, self._layers = model, decoder_layers(model, layers_path)
        booster.check_fits(hidden_size(model), len(self._layers), type(model).__name__)
        effective = booster.scaled(strength)
        self._injections: Mapping[int, Injection] = {} if effective.is_zero else effective.injections
        self._entered = 0
        self._watches: list[RemovableHandle] = []
        self._before: dict[int, int] = {}

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers whose output is changed, ascending; empty if there are none."""
        return tuple(self._injections)

    def attach(self) -> Self:
        """Starts steering. Calls nest: two calls still add the delta once, and need two calls of `detach()`.

        Raises:
            ModelError: The model was compiled and ignores hooks, so steering would have no effect. A forward pass in
                which one of the layers runs more or less than once raises it, too.
        """
        if not self._entered:
            if compiled(self._model):
                refuse_ignored_hooks(self._model, [self._layers[layer] for layer in self._injections])
            elif self._injections:
                self._watches = [
                    self._model.register_forward_pre_hook(self._begin_pass),
                    self._model.register_forward_hook(self._end_pass),
                ]
            for layer, injection in self._injections.items():
                _Site.of(self._layers[layer]).add(injection)
        self._entered += 1
        return self

    def detach(self) -> None:
        """Stops steering; does nothing if the booster is not attached."""
        self._entered = max(self._entered - 1, 0)
        if not self._entered:
            while self._watches:
                self._watches.pop().remove()
            for layer, injection in self._injections.items():
                _Site.of(self._layers[layer]).remove(injection)

    def _begin_pass(self, *_: Any) -> None:
        self._before = {layer: _Site.of(self._layers[layer]).runs for layer in self._injections}

    def _end_pass(self, *_: Any) -> None:
        for layer, before in self._before.items():
            if (runs := _Site.of(self._layers[layer]).runs - before) != 1:
                raise ModelError(
                    f"layer {layer} of {type(self._model).__name__} ran {runs} times in one forward pass; a model that "
                    "skips or repeats layers cannot be steered there"
                )

    def __enter__(self) -> Self:
        """Attaches."""
        return self.attach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detaches, after an exception too."""
        self.detach()


class _Site:
    """The one hook of a layer that is steered: deltas of all boosters are taken of the same unsteered hidden state."""

    def __init__(self, module: nn.Module) -> None:
        self.runs = 0
        self._injections: list[Injection] = []
        self._module, self._handle = weakref.ref(module), module.register_forward_hook(self)

    @classmethod
    def of(cls, module: nn.Module) -> _Site:
        """The site of a layer; it goes with its last injection."""
        if module not in _SITES:
            _SITES[module] = cls(module)
        return _SITES[module]

    def add(self, injection: Injection) -> None:
        self._injections.append(injection)

    def remove(self, injection: Injection) -> None:
        self._injections = [other for other in self._injections if other is not injection]
        if not self._injections:
            self._handle.remove()
            if (module := self._module()) is not None:
                _SITES.pop(module, None)

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        self.runs += 1
        return injected(module, output, self._injections)


_SITES: weakref.WeakKeyDictionary[nn.Module, _Site] = weakref.WeakKeyDictionary()


def injected(module: nn.Module, output: Any, injections: Iterable[Injection]) -> Any:
    """A layer's output, a tensor or a tuple or list that starts with it, with the deltas of injections added.

    Raises:
        ModelError: The layer returns something else.
    """
    hidden = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(hidden, Tensor):
        raise ModelError(f"{type(module).__name__} returns {type(output).__name__}, which cannot be steered")
    steered = hidden
    for injection in injections:
        steered = steered + injection.delta(hidden)
    return steered if isinstance(output, Tensor) else type(output)((steered, *output[1:]))


def compiled(model: nn.Module) -> bool:
    """Whether a part of a model was compiled by torch, in whatever way, so that its hooks may be ignored."""
    return any(
        isinstance(module, OptimizedModule)
        or getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        for module in model.modules()
    )


@torch.no_grad()
def refuse_ignored_hooks(model: nn.Module, layers: Sequence[nn.Module]) -> None:
    """Runs a compiled model to see whether a hook at each of some layers has an effect.

    Raises:
        ModelError: It has none at one of them: the booster would seem to change nothing.
    """
    tokens = torch.tensor([[1, 2]], device=input_device(model))

    def moved(module: nn.Module, inputs: Any, output: Any) -> Any:
        return injected(module, output, [StaticInjection(torch.full((hidden_size(model),), 1e2))])

    plain = model(tokens).logits
    for layer in layers:
        handle = layer.register_forward_hook(moved)
        try:
            ignored = torch.equal(model(tokens).logits, plain)
        finally:
            handle.remove()
        if ignored:
            raise ModelError(
                f"{type(model).__name__} was compiled and ignores hooks, so a booster would have no effect; load it "
                "without torch.compile"
            )


@contextmanager
def training_injections(
    layers: nn.ModuleList, injections: Mapping[int, Injection]
) -> Iterator[Callable[[float], AbstractContextManager[None]]]:
    """Applies injections whose tensors are being trained, so that gradients reach them.

    Args:
        layers: The decoder layers.
        injections: By layer; unlike `Steering`, a zero injection is hooked too.

    Yields:
        A function of a strength: in the block that it gives, the injections act at that strength, and at 1 outside.
    """
    strength = 1.0

    @contextmanager
    def at_strength(value: float) -> Iterator[None]:
        nonlocal strength
        before, strength = strength, value
        try:
            yield
        finally:
            strength = before

    def hook(injection: Injection) -> Callable[[nn.Module, Any, Any], Any]:
        return lambda module, inputs, output: injected(module, output, [injection.scaled(strength)])

    handles = [layers[layer].register_forward_hook(hook(part)) for layer, part in injections.items()]
    try:
        yield at_strength
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
