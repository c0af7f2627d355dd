"""What can be said of a model before its weights are loaded: a wrong name, device, argument or layer is known at once.

Knows folders, configurations and the names of arguments. Loads no weights.
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoConfig

from aft_harness.engine.gguf_file import is_gguf
from aft_harness.engine.llama_library import checked_file
from aft_harness.errors import ModelError, ParseError
from aft_harness.text import printable

if TYPE_CHECKING:
    from aft_harness.boosters.booster import Booster

STEERED = ("vector", "scale", "layers_path", "packing")
"""Arguments of `steered-hf` beyond those of `hf`."""

_CONFIG = ("trust_remote_code", "revision", "subfolder", "gguf_file")
"""Arguments that a configuration is found by."""

_ALIKE = 0.8
"""How alike two names are, from 0 to 1, of which one is taken for a mistyped other."""


@dataclass(frozen=True)
class Shape:
    """What a configuration says of a model.

    Attributes:
        layers: Number of decoder layers.
        hidden_size: Width of the residual stream.
        fields: Names that the configuration has.
    """

    layers: int
    hidden_size: int
    fields: frozenset[str]


def check(pretrained: str, arguments: Mapping[str, Any], booster: Booster | None = None) -> Shape | None:
    """Refuses what cannot be loaded or steered, as far as that can be known without the weights.

    Args:
        pretrained: Hub id or folder.
        arguments: Further arguments of `steered-hf`.
        booster: What the model would be steered with.

    Returns:
        The model's shape; None where its configuration does not say it, or cannot be had yet.

    Raises:
        AftError: One line says what is wrong.
    """
    if is_gguf(pretrained):
        checked_file(pretrained)
        return None
    _check_device(arguments.get("device"))
    _check_dtype(arguments.get("dtype"))
    _check_folder(pretrained, arguments)
    shape = shape_of(pretrained, arguments)
    _check_names(arguments, shape)
    if shape and booster:
        booster.check_fits(shape.hidden_size, shape.layers, "the model")
    return shape


def shape_of(pretrained: str, arguments: Mapping[str, Any]) -> Shape | None:
    """The shape that a configuration tells; None where none is found or it has another form."""
    found = {name: arguments[name] for name in _CONFIG if arguments.get(name)}
    try:
        config = AutoConfig.from_pretrained(pretrained, **found)
        text = config.get_text_config(decoder=True)
        return Shape(int(text.num_hidden_layers), int(text.hidden_size), frozenset(config.to_dict()))
    except Exception:  # what is wrong with it, loading the model says
        return None


def _check_folder(pretrained: str, arguments: Mapping[str, Any]) -> None:
    folder = Path(pretrained).expanduser()
    if folder.is_dir():
        inside = folder / str(arguments.get("subfolder") or "")
        if not any((inside / name).is_file() for name in ("config.json", "adapter_config.json")) and not arguments.get(
            "gguf_file"
        ):
            raise ModelError(f"{pretrained}: no model in this folder (config.json is missing)")
        return
    if folder.exists():
        raise ModelError(f"{pretrained}: not a folder but a file; give a checkpoint folder or a hub id")
    # A hub id has one slash at most and begins with neither dot, slash nor tilde.
    if pretrained.startswith((".", os.sep, "~")) or pretrained.count("/") > 1 or "\\" in pretrained:
        raise ModelError(f"{pretrained}: no such folder")


def _check_device(device: object) -> None:
    if device is None:
        return
    try:
        wanted = torch.device(str(device))
    except RuntimeError:
        raise ParseError(f"device {printable(device)}: expected cpu, cuda, cuda:N or mps") from None
    if wanted.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            built = "" if torch.backends.cuda.is_built() else " (PyTorch was built without CUDA)"
            raise ParseError(f"device {wanted}: no CUDA GPU is available{built}; use device cpu")
        if (wanted.index or 0) >= count:
            raise ParseError(f"device {wanted}: the available CUDA devices are cuda:0 to cuda:{count - 1}")
    if wanted.type == "mps" and not torch.backends.mps.is_available():
        raise ParseError("device mps: no Apple GPU is available; use device cpu")


def _check_dtype(dtype: object) -> None:
    if dtype in (None, "auto") or isinstance(dtype, torch.dtype):
        return
    if not isinstance(getattr(torch, str(dtype), None), torch.dtype):
        raise ParseError(f"dtype {printable(dtype)}: expected auto, float32, bfloat16 or float16")


def _check_names(arguments: Mapping[str, Any], shape: Shape | None) -> None:
    """Refuses a name that is nearly one of ours or of `hf`: as a setting of the model it would have no effect."""
    known = {*inspect.signature(HFLM.__init__).parameters, *STEERED} - {"self", "kwargs"}
    for name in arguments:
        if name in known or (shape and name in shape.fields):
            continue
        if near := difflib.get_close_matches(name, known, n=1, cutoff=_ALIKE):
            raise ParseError(f"unknown model argument {printable(name)!r}; did you mean {near[0]}=?")
