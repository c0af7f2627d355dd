"""Control vectors of llama.cpp, which repeng writes too: a GGUF file with a tensor `direction.N` for each layer N."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import torch
from torch import Tensor

from aft_harness.engine.gguf_file import F32, MAGIC, GgufHeader, TensorEntry, read_header
from aft_harness.errors import BoosterError
from aft_harness.publish.export.origin import KEY
from aft_harness.publish.imports.foreign import Foreign, checked_vector, layer_number
from aft_harness.text import printable

FORMAT = "llama.cpp control vector"

_F16, _BF16 = 1, 30
_DTYPES = {F32: torch.float32, _F16: torch.float16, _BF16: torch.bfloat16}
_DIRECTION = re.compile(r"direction\.(0|[1-9][0-9]*)")


def recognised(data: bytes) -> bool:
    """Whether the bytes are a GGUF file."""
    return data.startswith(MAGIC)


def read(data: bytes) -> Foreign:
    """Reads a control vector: `direction.N` is added to the output of decoder layer N, counted from 0.

    Raises:
        BoosterError: It is another GGUF file, or damaged.
    """
    header = read_header(data)
    if header.architecture != "controlvector":
        kind = printable(header.architecture) or "unknown"
        raise BoosterError(f"is a GGUF file of architecture {kind}, not a control vector")
    vectors: dict[int, Tensor] = {}
    for entry in header.tensors.values():
        match = _DIRECTION.fullmatch(entry.name)
        if match is None:
            raise BoosterError(f"is a control vector with an unknown tensor: {printable(entry.name)}")
        layer = layer_number(match[1], entry.name)
        if layer == 0:
            raise BoosterError("is a control vector with a direction.0, which llama.cpp refuses too")
        vectors[layer] = checked_vector(_tensor(data, header, entry), entry.name)
    return Foreign(FORMAT, vectors, origin=_origin(header))


def _tensor(data: bytes, header: GgufHeader, entry: TensorEntry) -> Tensor:
    if entry.type not in _DTYPES:
        raise BoosterError(f"{entry.name} is quantised (type {entry.type}); a control vector is of float32")
    if math.prod(entry.shape[1:]) != 1 or not entry.shape[0]:
        raise BoosterError(f"{entry.name} has the shape {list(entry.shape)}; a vector has one dimension")
    begin, size = header.data_start + entry.offset, entry.size
    if size is None or begin + size > len(data):
        raise BoosterError(f"is cut short: {entry.name} lies beyond its end")
    return torch.frombuffer(bytearray(data[begin : begin + size]), dtype=_DTYPES[entry.type])


def _origin(header: GgufHeader) -> dict[str, Any]:
    try:
        origin = json.loads(header.text(KEY) or "{}")
    except (ValueError, RecursionError):
        return {}
    return origin if isinstance(origin, dict) else {}
