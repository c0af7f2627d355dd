"""Reading off a loaded model which one it is: a name and a fingerprint that are the same on every machine.

Knows configurations and weights of Hugging Face models. An absolute path never becomes part of an identity.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from aft_harness.boosters.model_identity import ModelIdentity

if TYPE_CHECKING:
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


def identify(model: PreTrainedModel, pretrained: str | None = None) -> ModelIdentity:
    """The identity of a loaded model.

    Args:
        model: The model; its weights are read, not changed.
        pretrained: What it was loaded from: a hub id or a folder.
    """
    config = model.config.get_text_config(decoder=True)
    commit = getattr(model.config, "_commit_hash", None)
    return ModelIdentity(
        name=_name(model, pretrained),
        revision=str(commit) if commit else None,
        fingerprint=_fingerprint(model),
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


def _fingerprint(model: PreTrainedModel) -> str:
    import torch  # here, so that who only wants the marker's name does not wait for it

    digest = hashlib.sha256()
    config = {key: value for key, value in model.config.to_dict().items() if key not in _VOLATILE}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{list(parameter.shape)}".encode())
        if parameter.device.type == "meta" or not parameter.numel():
            continue  # offloaded: its values are not at hand
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES]
        # bfloat16 is what every common dtype rounds to, so that a float32 load of a bfloat16 checkpoint agrees.
        if sample.is_floating_point():
            sample = sample.to(torch.bfloat16).to(torch.float32)
        digest.update(sample.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
