"""A booster as the bias tensors of a checkpoint: their names, their values in the checkpoint's dtype, what they do.

Knows a checkpoint's tensors and a form; writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from aft_harness.engine.decoder import decoder_layers
from aft_harness.engine.skeleton import skeleton
from aft_harness.errors import ExportError, ModelError
from aft_harness.publish.export.base import Base
from aft_harness.publish.export.forms import Form

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of numbers that are not quantised, by their names in safetensors files."""


@dataclass(frozen=True)
class Biases:
    """The tensors by which a checkpoint expresses a booster.

    Attributes:
        changed: Tensors of the base with new values, by their names in its files.
        added: Tensors that the base does not have, by the names that they get.
        parameters: What the model calls the bias of each steered layer.
        values: That bias, in the checkpoint's dtype.
        effective: What it adds to the output of the layer, [hidden], float32: the vector but for the rounding.
    """

    changed: dict[str, Tensor] = field(default_factory=dict)
    added: dict[str, Tensor] = field(default_factory=dict)
    parameters: dict[int, str] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    effective: dict[int, Tensor] = field(default_factory=dict)


def biases_of(base: Base, config: PreTrainedConfig, form: Form, vectors: Mapping[int, Tensor]) -> Biases:
    """The tensors for a booster.

    Args:
        base: The checkpoint.
        config: Its configuration.
        form: How it is to say the booster.
        vectors: What is added to the output of each layer, [hidden].

    Raises:
        ExportError: Its weights are quantised, or a value is too large for their type.
        ModelError: Its tensors cannot be read.
    """
    source, target = skeleton(config), skeleton(form.config)
    _refuse_quantised(base, set(dict(source.named_parameters())), source.base_model_prefix)
    layers = decoder_layers(target)
    place = next(name for name, module in target.named_modules() if module is layers)
    found = Biases()
    shapes = {name: tuple(value.shape) for name, value in target.state_dict().items()}
    for parameter in sorted(set(shapes) - set(source.state_dict())):
        stem = parameter.removesuffix(".bias")
        weight = _stored(base, source, f"{stem}.weight")
        name = f"{weight.removesuffix('.weight')}.bias" if weight.endswith(f"{stem}.weight") else parameter
        found.added[name] = torch.zeros(shapes[parameter], dtype=_dtype(base, weight))
    for layer, vector in vectors.items():
        parameter = f"{place}.{layer}.{form.site.name}.bias"
        weight = base.name_of(f"{parameter.removesuffix('.bias')}.weight", source.base_model_prefix)
        name = f"{weight.removesuffix('.weight')}.bias"
        into = found.added if name in found.added else found.changed
        before = into[name] if name in into else _read(base, name)
        value = (before.double() + vector.double() / form.site.factor).to(before.dtype)
        if not torch.isfinite(value).all():
            raise ExportError(f"layer {layer}: a value of the vector is too large for the base's {_word(value.dtype)}")
        into[name], found.parameters[layer], found.values[layer] = value, parameter, value
        found.effective[layer] = ((value.double() - before.double()) * form.site.factor).float()
    return found


def dtype_of(biases: Biases) -> str:
    """The type of the numbers, such as `bfloat16`; several are joined."""
    return ", ".join(sorted({_word(value.dtype) for value in biases.values.values()}))


def _refuse_quantised(base: Base, parameters: set[str], prefix: str) -> None:
    """Refuses packed weights; a model that was unpacked may still call itself quantised."""
    if "quantization_config" not in base.config:
        return
    plain = {name for name, stored in base.tensors.items() if stored.dtype in DTYPES}
    missing = {name for name in parameters if not {name, name.removeprefix(f"{prefix}.")} & plain}
    if {name for name in missing if not name.startswith("lm_head.")} or len(plain) < len(base.tensors):
        raise ExportError(
            f"{base.label} is quantised, and its weights are packed; export from the model that it was made of and "
            "quantise the export, or run the booster with `--model steered-hf`"
        )


def _stored(base: Base, source: PreTrainedModel, parameter: str) -> str:
    """What a parameter is called in the files, which hold one that is tied to another once."""
    parameters = dict(source.named_parameters(remove_duplicate=False))
    tied = [name for name, each in parameters.items() if each is parameters.get(parameter)]
    for name in (parameter, *tied):
        with suppress(ModelError):
            return base.name_of(name, source.base_model_prefix)
    return base.name_of(parameter, source.base_model_prefix)  # which says what is wrong


def _dtype(base: Base, name: str) -> torch.dtype:
    stored = base.tensors[name]
    if stored.dtype not in DTYPES:
        raise ExportError(f"{base.label}: {name} is quantised ({stored.dtype}), and a bias of it cannot be vouched for")
    return DTYPES[stored.dtype]


def _read(base: Base, name: str) -> Tensor:
    if name not in base.tensors:
        raise ExportError(f"{base.label}: has no tensor {name}, which models of its kind have")
    _dtype(base, name)
    with safe_open(base.folder / base.tensors[name].file, "pt") as file:
        found: Tensor = file.get_tensor(name)
    return found


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
