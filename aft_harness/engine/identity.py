"""Reading off a model which one it is: a name and a fingerprint that are the same on every machine.

Knows configurations and weights of Hugging Face models. An absolute path never becomes part of an identity.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from aft_harness.boosters.model_identity import ModelIdentity

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

MARKER = "aft_model.json"
"""A file beside a checkpoint that tells its name; written by `aft demo-model`."""

_SAMPLES = 64
# Settings of a load, not of a model: the same weights in another dtype are the same model.
_VOLATILE = {
    "_name_or_path",
    "_attn_implementation",
    "_attn_implementation_internal",
    "_experts_implementation_internal",
    "architectures",
    "dtype",
    "experts_implementation",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


def identify(
    model: PreTrainedModel,
    pretrained: str | None = None,
    weight: Callable[[str], Tensor | None] | None = None,
) -> ModelIdentity:
    """The identity of a model.

    Args:
        model: The model; its weights are read, not changed.
        pretrained: What it was loaded from: a hub id or a folder.
        weight: Gives a weight by the name of its parameter, for a model on the device `meta`; None where there is none.
    """
    config = model.config.get_text_config(decoder=True)
    commit = getattr(model.config, "_commit_hash", None)
    return ModelIdentity(
        name=_name(model, pretrained),
        revision=str(commit) if commit else None,
        fingerprint=_fingerprint(model, weight),
        architecture=type(model).__name__,
        layers=int(config.num_hidden_layers),
        hidden_size=int(config.hidden_size),
    )


def _name(model: PreTrainedModel, pretrained: str | None) -> str:
    source = pretrained or str(getattr(model, "name_or_path", "") or "")
    folder = Path(source)
    if not source or not folder.is_dir():
        # A hub id has one slash at most; anything else that is no folder could be a path of another machine.
        return source if source and source.count("/") <= 1 and "\\" not in source else type(model).__name__
    try:
        name = json.loads((folder / MARKER).read_text(encoding="utf-8"))["name"]
    except (OSError, ValueError, KeyError, TypeError):
        name = folder.resolve().name
    return str(name)


def _fingerprint(model: PreTrainedModel, weight: Callable[[str], Tensor | None] | None) -> str | None:
    """A digest of configuration and weights; None where a weight is not at hand."""
    import torch  # here, so that who only wants the marker's name does not wait for it

    digest = hashlib.sha256()
    config = {key: value for key, value in model.config.to_dict().items() if key not in _VOLATILE}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, parameter in _weights(model, weight):
        if parameter is None:
            return None
        digest.update(f"{name}{list(parameter.shape)}".encode())
        if not parameter.numel():
            continue
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES]
        # bfloat16 is what every common dtype rounds to, so that a float32 load of a bfloat16 checkpoint agrees.
        if sample.is_floating_point():
            sample = sample.to(torch.bfloat16).to(torch.float32)
        digest.update(sample.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _weights(
    model: PreTrainedModel, weight: Callable[[str], Tensor | None] | None
) -> Iterator[tuple[str, Tensor | None]]:
    """The weights by name, each once, as the model has them when it runs.

    Weights that are offloaded lie elsewhere while it does not run: they are read one after the other. None stands for
    one that cannot be found there.
    """
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    found: dict[str, tuple[Module, str, Tensor]] = {}
    seen: set[object] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            # Of weights that are tied the first counts; where they are offloaded they are two objects with one name.
            keys = {id(parameter), tied.get(name, name)}
            if seen.isdisjoint(keys):
                plain = name.replace("_orig_mod.", "")  # torch.compile's wrapper
                found[plain] = (module, name.rpartition(".")[2], parameter)
            seen |= keys
    for name, place in sorted(found.items(), key=lambda item: item[0]):
        yield name, weight(name) if weight else _at_hand(*place)


def _at_hand(module: Module, name: str, parameter: Tensor) -> Tensor | None:
    if parameter.device.type != "meta":
        return parameter
    hook = getattr(module, "_hf_hook", None)  # accelerate's
    for each in getattr(hook, "hooks", (hook,)):
        weights = getattr(each, "weights_map", None)
        if weights is not None and name in weights:
            value: Tensor = weights[name]
            return value
    return None
