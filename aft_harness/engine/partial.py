"""Partial forward passes: up to a layer, from a layer on, and at chosen positions only.

Knows the decoder layers of a model and how to run some of them. Knows nothing of boosters, rows or tasks. Besides
`steering.py` this is the only place that changes what a module does, and only inside a block.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aft_harness.errors import ModelError

_Forward = Callable[..., Any]


class _ReachedError(Exception):
    """Ends a forward pass at the layer whose output was wanted."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


def computed_up_to(layers: nn.ModuleList, layer: int, run: Callable[[], object]) -> Any:
    """Runs a forward pass no further than `layer` and returns what that layer returned, before any injection there.

    Args:
        layers: The decoder layers.
        layer: The last one to run.
        run: Starts the forward pass.
    """

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        raise _ReachedError(output)

    handle = layers[layer].register_forward_hook(hook, prepend=True)
    try:
        run()
    except _ReachedError as reached:
        return reached.output
    finally:
        handle.remove()
    raise ModelError(f"a forward pass did not reach layer {layer}")


@contextmanager
def _replaced(modules: Sequence[nn.Module], replacement: Callable[[_Forward], _Forward]) -> Iterator[None]:
    """In this block modules run what `replacement` makes of their forward functions.

    An instance's own forward function is an offloading wrapper's: it is put back, not dropped.
    """
    saved = [vars(module).get("forward") for module in modules]
    try:
        for module in modules:
            module.forward = replacement(module.forward)
        yield
    finally:
        for module, forward in zip(modules, saved, strict=True):
            if forward is None:
                vars(module).pop("forward", None)
            else:
                module.forward = forward


def resumed_after(layers: nn.ModuleList, layer: int, output: Any) -> AbstractContextManager[None]:
    """In this context the layers up to `layer` do not run: each returns `output`, as `computed_up_to` gave it.

    Injections at `layer` and above apply as ever. The list of layers stays as it is, because models choose masks by the
    index of a layer.
    """
    return _replaced(list(layers)[: layer + 1], lambda forward: lambda *args, **kwargs: output)


def recomputed(layers: Sequence[nn.Module]) -> AbstractContextManager[None]:
    """In this context layers keep nothing but their input for the backward pass, and are computed once more there.

    What hooks add to their output is not part of that. The model's own switch for this wants it in training mode, with
    dropout.
    """
    return _replaced(
        layers, lambda forward: partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
    )


def last_mlp(layers: nn.ModuleList) -> nn.Module | None:
    """The last layer's MLP, where the layer calls one by that name and with the hidden state alone."""
    module = getattr(layers[-1], "mlp", None)
    if not isinstance(module, nn.Module):
        return None
    needed = [
        parameter
        for parameter in inspect.signature(module.forward).parameters.values()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    ]
    return module if len(needed) == 1 else None


@contextmanager
def given_only(module: nn.Module, keep: Tensor) -> Iterator[None]:
    """In this block a module gets some positions only, as [n, hidden], and returns as many.

    Args:
        module: Treats each position by itself. One that is given other positions than `keep` has runs as ever.
        keep: bool [batch, positions].
    """

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden, *rest = inputs
        return (hidden[keep.to(hidden.device)], *rest) if hidden.shape[:-1] == keep.shape else None

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def narrowed(module: nn.Module, keep: Tensor) -> AbstractContextManager[None]:
    """In this context a module that treats each position by itself runs at some of them; it returns zero at the others.

    Above the last layer's attention nothing is looked at but the positions whose logits are wanted.

    Args:
        module: Takes and returns [batch, positions, hidden]; one that returns anything else runs as ever.
        keep: bool [batch, positions].
    """

    def narrow(forward: _Forward) -> _Forward:
        def at_some(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            if args or kwargs or hidden.shape[:-1] != keep.shape:
                return forward(hidden, *args, **kwargs)
            chosen = keep.to(hidden.device)
            output = forward(hidden[chosen].unsqueeze(0))
            if not isinstance(output, Tensor) or output.shape[:-1] != (1, int(chosen.sum())):
                return forward(hidden)
            return output.new_zeros(*hidden.shape[:-1], output.shape[-1]).index_put((chosen,), output[0])

        return at_some

    return _replaced([module], narrow)
