"""The decoder layers of a model: where they are, how many, how wide, and whether the model is causal.

Knows the module structure and the configuration of Hugging Face models. Knows nothing of boosters, hooks or tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from aft_harness.errors import ModelError

OVERRIDE = "layers_path"
"""The setting that names the list of decoder layers of a model which the rule does not fit."""


def decoder_layers(model: nn.Module, path: str | None = None) -> nn.ModuleList:
    """The decoder layers of a Hugging Face causal language model, in order.

    The rule: the only `ModuleList` directly inside `model.get_decoder()` that has as many entries as the text
    configuration has hidden layers; where there is none, the only such list deeper inside of it or of the model.

    Args:
        model: The model, which may be wrapped by PEFT.
        path: Dotted name of the list inside `model`, which replaces the rule.

    Raises:
        ModelError: No list fits, or several do; layers share modules.
    """
    if path:
        try:
            found = model.get_submodule(path)
        except AttributeError:
            raise ModelError(f"{OVERRIDE}={path}: the model has no such module") from None
        if not isinstance(found, nn.ModuleList) or not len(found):
            raise ModelError(f"{OVERRIDE}={path}: is a {type(found).__name__}, not a list of layers")
        return _distinct(model, found)
    try:
        config = text_config(model)
        # Of an encoder-decoder's decoder alone, `num_hidden_layers` may be the encoder's.
        count = getattr(config, "decoder_layers", None) or config.num_hidden_layers
        decoder = model.get_decoder()  # type: ignore[operator]  # forwarded by wrappers
    except AttributeError:
        raise ModelError(
            f"{type(model).__name__} is not a Hugging Face language model; name its layers with {OVERRIDE}=..."
        ) from None
    fitting = [child for child in decoder.children() if isinstance(child, nn.ModuleList) and len(child) == count]
    for place in (decoder, model):  # some models call their head `decoder`
        fitting = fitting or list(_outermost(place, count))
    if len(fitting) != 1:
        raise ModelError(
            f"{type(model).__name__} has {len(fitting)} lists of {count} layers; name the right one with "
            f"{OVERRIDE}=... (for example {OVERRIDE}=model.layers)"
        )
    return _distinct(model, fitting[0])


def _distinct(model: nn.Module, layers: nn.ModuleList) -> nn.ModuleList:
    """The layers, unless two of them are one module, which could not be steered apart."""
    if len(set(layers)) < len(layers):
        raise ModelError(f"{type(model).__name__} has {len(layers)} layers that share modules, and cannot be steered")
    return layers


def _outermost(module: nn.Module, count: int) -> Iterator[nn.ModuleList]:
    """Lists of `count` entries inside a module, without those that lie in another of them."""
    for child in module.children():
        if isinstance(child, nn.ModuleList) and len(child) == count:
            yield child
        else:
            yield from _outermost(child, count)


def text_config(model: nn.Module) -> Any:
    """The configuration of the language model inside `model`."""
    return model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]


def layer_settings(config: Any, name: str) -> set[Any]:
    """What a configuration says of a setting, for all layers or for each; empty where it has no such setting."""
    differing = name in (getattr(config, "per_layer_attributes", None) or ())
    found = {getattr(each, name, None) for each in (config.per_layer_config if differing else (config,))}
    return found - {None}


def hidden_size(model: nn.Module) -> int:
    """Width of the residual stream."""
    return int(text_config(model).hidden_size)


def input_device(model: nn.Module) -> torch.device:
    """Where the model takes its input, wherever its weights lie while it does not run."""
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    for module in (model, embeddings):
        hook = getattr(module, "_hf_hook", None)  # accelerate's
        if (device := getattr(hook, "execution_device", None)) is not None:
            return torch.device(device)
    at_hand = (parameter.device for parameter in model.parameters() if parameter.device.type != "meta")
    return next(at_hand, torch.device("cpu"))


@torch.no_grad()
def check_causal(model: nn.Module) -> None:
    """Checks by running it that `model` predicts tokens from earlier tokens only.

    Raises:
        ModelError: A later token changes an earlier position, as in a masked language model.
    """
    device = input_device(model)
    first, second = (torch.tensor([[1, 2, 3, last]], device=device) for last in (4, 5))
    before, after = (model(tokens).logits[0, :3].float() for tokens in (first, second))
    if not torch.allclose(before, after, rtol=1e-2, atol=1e-2):
        raise ModelError(f"{type(model).__name__} is not a causal language model: later tokens affect earlier ones")
