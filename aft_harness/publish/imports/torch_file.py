"""Files of torch tensors: those of lm-eval's own `steered` model type, and matrices of (layers, hidden) as hotwire has.

They are pickles. `weights_only` lets nothing in them run, and what they may claim of memory is bounded first.
"""

from __future__ import annotations

import io
import json
import math
import re
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from aft_harness.errors import BoosterError
from aft_harness.publish.imports.foreign import WIDEST, Foreign, checked_vector, layer_number
from aft_harness.text import printable

STEERED = "lm-eval steered file"
MATRIX = "file of a tensor by layers"

_MAGIC = b"PK\x03\x04"
_HOOKPOINT = re.compile(r"(?:[A-Za-z_]\w*\.)*(?:layers|h|blocks)\.(0|[1-9][0-9]*)", re.ASCII)
_DEEPEST = 10_000  # layers of a matrix
_PICKLE_LIMIT = 2**24  # bytes of the part that is interpreted; tensors lie outside of it


def recognised(data: bytes) -> bool:
    """Whether the bytes are an archive as `torch.save` writes it."""
    return data.startswith(_MAGIC)


def read(data: bytes) -> Foreign:
    """Reads a steering file of lm-eval, or a matrix whose row L is added to the output of decoder layer L.

    Raises:
        BoosterError: It holds something else, something that no booster can say, or is damaged.
    """
    _check_sizes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's, about tensors of unusual kinds, which are refused below
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive raises whatever the unpickler trips over
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise BoosterError(f"cannot be read as a file of tensors ({printable(reason)[:300]})") from None
    if isinstance(content, Mapping) and content and all(isinstance(entry, Mapping) for entry in content.values()):
        return Foreign(STEERED, dict(_steered(name, entry) for name, entry in content.items()))
    if isinstance(content, Mapping):
        tensors = [value for value in content.values() if isinstance(value, Tensor)]
        if len(tensors) == 1:
            return _matrix(tensors[0], _origin(content.get("aft")))
    elif isinstance(content, Tensor):
        return _matrix(content, {})
    raise BoosterError("holds neither lm-eval's steering vectors nor one tensor of (layers, hidden)")


def _check_sizes(data: bytes) -> None:
    """Refuses archives that are larger inside than outside."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except Exception as error:  # zipfile raises a dozen kinds of errors for damaged archives
        raise BoosterError(f"is a damaged archive ({printable(error) or type(error).__name__})") from None
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise BoosterError("is a compressed archive; torch.save writes none")
    if sum(entry.file_size for entry in entries) > len(data):
        raise BoosterError("is a damaged archive (its parts are larger than the whole)")
    if any(entry.filename.endswith(".pkl") and entry.file_size > _PICKLE_LIMIT for entry in entries):
        raise BoosterError("holds far more than tensors")


def _steered(name: Any, entry: Mapping[Any, Any]) -> tuple[int, Tensor]:
    shown = printable(name) if isinstance(name, str) else type(name).__name__
    match = _HOOKPOINT.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise BoosterError(f"steers {shown}; a booster changes the output of decoder layers only, such as layers.5")
    if (action := entry.get("action")) != "add":
        raise BoosterError(f"{shown}: action {printable(action)!r} is not 'add', which is all that a booster does")
    if entry.get("head_index") is not None:
        raise BoosterError(f"{shown}: steers one attention head; a booster steers the residual stream")
    if entry.get("bias") is not None:
        raise BoosterError(f"{shown}: has a bias, which goes with action 'clamp' only")
    strength = entry.get("steering_coefficient", 1.0)
    if isinstance(strength, Tensor) and strength.layout == torch.strided and strength.numel() == 1:
        strength = strength.item()
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not _finite(strength):
        raise BoosterError(f"{shown}: its steering_coefficient is not a finite number")
    vector = checked_vector(entry.get("steering_vector"), f"{shown}: steering_vector")
    return layer_number(match[1], name), vector if strength == 1 else checked_vector(vector * float(strength), shown)


def _finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond all floats
        return False


def _matrix(tensor: Tensor, origin: Mapping[str, Any]) -> Foreign:
    if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.dim() != 2:
        shape = list(tensor.shape) if tensor.layout == torch.strided else []
        raise BoosterError(f"holds a tensor of shape {shape}; expected (layers, hidden), a row for each layer")
    if tensor.shape[0] > _DEEPEST or tensor.shape[1] > WIDEST:
        raise BoosterError(f"holds a tensor of shape {list(tensor.shape)}, larger than any model's")
    rows = {layer: checked_vector(row, f"row {layer}") for layer, row in enumerate(tensor)}
    kept = set(map(str, named)) if isinstance(named := origin.get("layers"), list) else set()
    # A layer that is not steered is a row of zeros; so is one that this package exported with a vector of zeros.
    return Foreign(
        MATRIX, {layer: row for layer, row in rows.items() if row.any() or str(layer) in kept}, origin=origin
    )


def _origin(text: Any) -> dict[str, Any]:
    try:
        origin = json.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        return {}
    return origin if isinstance(origin, dict) else {}
