"""What a file of another tool turns out to hold, and the checks that every format shares.

Knows vectors by layer. Knows no file formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aft_harness.errors import BoosterError
from aft_harness.text import printable

WIDEST, DEEPEST = 2**20, 10**5
"""Numbers of one vector, and layers, at most: no model is nearly that wide or deep."""


@dataclass(frozen=True)
class Foreign:
    """Vectors that another tool adds to the residual stream.

    Attributes:
        format: What the file is, in words.
        vectors: What is added to the output of each decoder layer, counted from 0; [hidden], float32.
        modules: Where the tool adds each of them, where that is inside the layer; by layer, relative to it.
        origin: What the file says of its origin, where this package wrote it.
    """

    format: str
    vectors: Mapping[int, Tensor]
    modules: Mapping[int, str] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses what is no booster."""
        if not self.vectors:
            raise BoosterError(f"is a {self.format} without a vector")
        widths = sorted({len(vector) for vector in self.vectors.values()})
        if len(widths) > 1:
            raise BoosterError(f"is a {self.format} whose vectors differ in width: {widths[0]} and {widths[-1]}")


def layer_number(digits: str, name: str) -> int:
    """A layer by its digits in a name.

    Raises:
        BoosterError: No model has so many.
    """
    if len(digits) > len(str(DEEPEST)) or int(digits) >= DEEPEST:
        raise BoosterError(f"{printable(name)}: the layer is out of range")
    return int(digits)


def checked_vector(tensor: object, name: str) -> Tensor:
    """A vector as float32, [hidden]: a copy of its own.

    Args:
        tensor: What a file holds; nothing is assumed of it.
        name: For the message.

    Raises:
        BoosterError: It is no vector of finite numbers.
    """
    shown = printable(name)
    if type(tensor) not in (Tensor, torch.nn.Parameter) or not isinstance(tensor, Tensor):
        raise BoosterError(f"{shown} is not a tensor")
    # A sparse, quantised or empty-handed tensor may be small in the file and vast in memory.
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise BoosterError(f"{shown} is not an ordinary tensor")
    if tensor.dim() != 1 or not 0 < len(tensor) <= WIDEST:
        raise BoosterError(f"{shown} has the shape {list(tensor.shape)}; a vector has one dimension")
    if not tensor.is_floating_point():
        raise BoosterError(f"{shown} holds {str(tensor.dtype).removeprefix('torch.')}, not floating-point numbers")
    vector = tensor.detach().to(torch.float32).clone()
    if not torch.isfinite(vector).all():
        raise BoosterError(f"{shown} holds NaN or infinity, or numbers beyond float32")
    return vector
