"""Steering a running model: find its decoder layers, put a booster in, take it out.

Knows the module structure of Hugging Face models and boosters. Knows nothing of tasks, tokens or files. This is the
only place that hooks a model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.injections import Injection
from aft_harness.errors import BoosterError, ModelError

OVERRIDE = "layers_path"


def decoder_layers(model: nn.Module, path: str | None = None) -> nn.ModuleList:
    """The decoder layers of a Hugging Face causal language model, in order.

    The rule: the only `ModuleList` directly inside `model.get_decoder()` that has as many entries as the text
    configuration has hidden layers.

    Args:
        model: The model, which may be wrapped by PEFT.
        path: Dotted name of the list inside `model`, which replaces the rule.

    Raises:
        ModelError: No list fits, or several do.
    """
    if path:
        try:
            found = model.get_submodule(path)
        except AttributeError:
            raise ModelError(f"{OVERRIDE}={path}: the model has no such module") from None
        if not isinstance(found, nn.ModuleList) or not len(found):
            raise ModelError(f"{OVERRIDE}={path}: is a {type(found).__name__}, not a list of layers")
        return found
    try:
        count = text_config(model).num_hidden_layers
        decoder = model.get_decoder()  # type: ignore[operator]  # forwarded by wrappers
    except AttributeError:
        raise ModelError(
            f"{type(model).__name__} is not a Hugging Face language model; name its layers with {OVERRIDE}=..."
        ) from None
    fitting = [child for child in decoder.children() if isinstance(child, nn.ModuleList) and len(child) == count]
    if len(fitting) != 1:
        raise ModelError(
            f"{type(model).__name__} has {len(fitting)} lists of {count} layers; name the right one with "
            f"{OVERRIDE}=... (for example {OVERRIDE}=model.layers)"
        )
    return fitting[0]


def text_config(model: nn.Module) -> Any:
    """The configuration of the language model inside `model`."""
    return model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]


def hidden_size(model: nn.Module) -> int:
    """Width of the residual stream."""
    return int(text_config(model).hidden_size)


def check_layer(layer: int, count: int) -> int:
    """Returns `layer` when it is an index of one of `count` decoder layers.

    Raises:
        ModelError: It is negative or too large.
    """
    if not 0 <= layer < count:
        raise ModelError(f"layer {layer} is out of range: the model has layers 0 to {count - 1}")
    return layer


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
def resumed_after(layers: nn.ModuleList, layer: int, output: Any) -> Iterator[None]:
    """In this block the layers up to `layer` do not run: each returns `output`, as `computed_up_to` gave it.

    Injections at `layer` and above apply as ever. The list of layers stays as it is, because models choose masks by the
    index of a layer.
    """
    replaced = [module for index, module in enumerate(layers) if index <= layer]
    # An instance's own forward is an offloading wrapper's: it is put back, not dropped.
    saved = [vars(module).get("forward") for module in replaced]
    try:
        for module in replaced:
            module.forward = lambda *args, **kwargs: output
        yield
    finally:
        for module, forward in zip(replaced, saved, strict=True):
            if forward is None:
                vars(module).pop("forward", None)
            else:
                module.forward = forward


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
def narrowed(module: nn.Module, keep: Tensor) -> Iterator[None]:
    """In this block a module that treats each position by itself runs at some of them; at the others it returns zero.

    Above the last layer's attention nothing is looked at but the positions whose logits are wanted.

    Args:
        module: Takes and returns [batch, positions, hidden]; one that returns anything else runs as ever.
        keep: bool [batch, positions].
    """
    saved = vars(module).get("forward")
    forward = module.forward

    def narrow(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or hidden.shape[:-1] != keep.shape:
            return forward(hidden, *args, **kwargs)
        chosen = keep.to(hidden.device)
        output = forward(hidden[chosen].unsqueeze(0))
        if not isinstance(output, Tensor) or output.shape[:-1] != (1, int(chosen.sum())):
            return forward(hidden)
        return output.new_zeros(*hidden.shape[:-1], output.shape[-1]).index_put((chosen,), output[0])

    try:
        module.forward = narrow
        yield
    finally:
        if saved is None:
            vars(module).pop("forward", None)
        else:
            module.forward = saved


@torch.no_grad()
def check_causal(model: nn.Module) -> None:
    """Checks by running it that `model` predicts tokens from earlier tokens only.

    Raises:
        ModelError: A later token changes an earlier position, as in a masked language model.
    """
    device = next(model.parameters()).device
    first, second = (torch.tensor([[1, 2, 3, last]], device=device) for last in (4, 5))
    before, after = (model(tokens).logits[0, :3].float() for tokens in (first, second))
    if not torch.allclose(before, after, rtol=1e-2, atol=1e-2):
        raise ModelError(f"{type(model).__name__} is not a causal language model: later tokens change earlier ones")
