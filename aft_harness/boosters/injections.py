"""What a booster adds to the residual stream at one decoder layer: `h -> h + delta(h)`.

Knows tensors and their names in the file format. Knows nothing of files, models or training.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, Self, get_args

import torch
from torch import Tensor
from torch.nn import functional

from aft_harness.boosters.vocabulary import InputNorm

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}
_RMS_EPSILON = 1e-6

_STATIC_SPEC = {"kind": "static", "activation": "none", "input_norm": "none", "positions": "all"}


class Injection(Protocol):
    """A change of the residual stream at one layer."""

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream this injection fits."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the file format, by their name after `layers.{L}.`."""

    @property
    def linear(self) -> tuple[str, ...]:
        """The tensors in which the delta is linear: their size goes with that of the residual stream."""

    @property
    def spec(self) -> dict[str, str]:
        """The entry of this injection in the file's `injections`."""

    @property
    def is_zero(self) -> bool:
        """Whether the delta is zero whatever the hidden state."""

    def delta(self, hidden: Tensor) -> Tensor:
        """The change of the residual stream [..., hidden], in the dtype and on the device of `hidden`."""

    def scaled(self, strength: float) -> Self:
        """This injection with its delta multiplied by `strength`."""

    def plus(self, other: Injection) -> Injection:
        """The injection whose delta is the sum of both deltas of the same hidden state.

        Raises:
            ValueError: They cannot be one injection.
        """

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same kind of injection with other values."""


@dataclass(frozen=True, eq=False)
class StaticInjection:
    """`h -> h + vector`, the same at every position.

    Attributes:
        vector: The added vector, [hidden]; float32 in a booster, any float dtype while it trains.
    """

    vector: Tensor

    @property
    def hidden_size(self) -> int:
        """See `Injection`."""
        return self.vector.shape[0]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """See `Injection`."""
        return {"vector": self.vector}

    @property
    def linear(self) -> tuple[str, ...]:
        """See `Injection`."""
        return ("vector",)

    @property
    def spec(self) -> dict[str, str]:
        """See `Injection`."""
        return dict(_STATIC_SPEC)

    @property
    def is_zero(self) -> bool:
        """See `Injection`."""
        return not self.vector.any()

    def delta(self, hidden: Tensor) -> Tensor:
        """The vector, [hidden]: it broadcasts over the positions."""
        return self.vector.to(device=hidden.device, dtype=hidden.dtype)

    def scaled(self, strength: float) -> StaticInjection:
        """See `Injection`."""
        return self if strength == 1.0 else StaticInjection(self.vector * strength)

    def plus(self, other: Injection) -> Injection:
        """See `Injection`."""
        return StaticInjection(self.vector + other.vector) if isinstance(other, StaticInjection) else other.plus(self)

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> StaticInjection:
        """See `Injection`."""
        return StaticInjection(**tensors)

    @classmethod
    def fresh(cls, hidden_size: int) -> StaticInjection:
        """The zero vector, where training starts."""
        return cls(torch.zeros(hidden_size))

    @classmethod
    def from_tensors(cls, spec: Mapping[str, str], tensors: Mapping[str, Tensor]) -> StaticInjection:
        """Builds the injection from a file's entry; raises `ValueError` with the reason when it cannot."""
        if dict(spec) != _STATIC_SPEC:
            raise ValueError(
                f"a static injection must have the settings {json.dumps(_STATIC_SPEC)}, not {json.dumps(dict(spec))}"
            )
        if set(tensors) != {"vector"}:
            raise ValueError(f"a static injection needs exactly one tensor, 'vector', not {sorted(tensors)}")
        if tensors["vector"].dim() != 1 or not len(tensors["vector"]):
            raise ValueError(f"'vector' must have one dimension, not shape {list(tensors['vector'].shape)}")
        return cls(tensors["vector"])


@dataclass(frozen=True, eq=False)
class ContextualInjection:
    """`h -> h + up(activation(down(norm(h))))`: a small MLP, so that the delta depends on the position.

    Attributes:
        down_weight: [rank, hidden].
        down_bias: [rank].
        up_weight: [hidden, rank].
        up_bias: [hidden].
        activation: A key of `ACTIVATIONS`.
        input_norm: `rms` divides h by its root mean square first; raw residual streams hold a few massive values.
    """

    down_weight: Tensor
    down_bias: Tensor
    up_weight: Tensor
    up_bias: Tensor
    activation: str = "gelu"
    input_norm: str = "rms"

    @property
    def hidden_size(self) -> int:
        """See `Injection`."""
        return self.up_bias.shape[0]

    @property
    def rank(self) -> int:
        """Width of the MLP."""
        return self.down_bias.shape[0]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """See `Injection`."""
        return {
            "down.weight": self.down_weight,
            "down.bias": self.down_bias,
            "up.weight": self.up_weight,
            "up.bias": self.up_bias,
        }

    @property
    def linear(self) -> tuple[str, ...]:
        """See `Injection`."""
        return ("up.weight", "up.bias")

    @property
    def spec(self) -> dict[str, str]:
        """See `Injection`."""
        kind = {"kind": "contextual", "positions": "all"}
        return {**kind, "activation": self.activation, "input_norm": self.input_norm}

    @property
    def is_zero(self) -> bool:
        """See `Injection`."""
        return not (self.up_weight.any() or self.up_bias.any())

    def delta(self, hidden: Tensor) -> Tensor:
        """See `Injection`; computed in the precision of the weights, float32 in a booster."""
        down_weight, down_bias, up_weight, up_bias = (part.to(hidden.device) for part in self.tensors.values())
        inputs = hidden.to(down_weight.dtype)
        if self.input_norm == "rms":
            inputs = inputs * torch.rsqrt(inputs.square().mean(-1, keepdim=True) + _RMS_EPSILON)
        inner = ACTIVATIONS[self.activation](functional.linear(inputs, down_weight, down_bias))
        return functional.linear(inner, up_weight, up_bias).to(hidden.dtype)

    def scaled(self, strength: float) -> ContextualInjection:
        """See `Injection`; the strength goes into `up`."""
        if strength == 1.0:
            return self
        return self.with_tensors(
            {name: tensor * strength if name in self.linear else tensor for name, tensor in self.tensors.items()}
        )

    def plus(self, other: Injection) -> ContextualInjection:
        """See `Injection`; ranks are concatenated, a static vector goes into `up.bias`."""
        if isinstance(other, StaticInjection):
            return self.with_tensors({**self.tensors, "up.bias": self.up_bias + other.vector})
        if not isinstance(other, ContextualInjection):
            raise ValueError(f"cannot be mixed with a {other.spec['kind']} injection")
        if self.spec != other.spec:
            mine, its = (f"{part.activation} with input_norm={part.input_norm}" for part in (self, other))
            raise ValueError(f"contextual injections at the same layer differ: {mine}, {its}")
        return self.with_tensors(
            {
                "down.weight": torch.cat([self.down_weight, other.down_weight]),
                "down.bias": torch.cat([self.down_bias, other.down_bias]),
                "up.weight": torch.cat([self.up_weight, other.up_weight], dim=1),
                "up.bias": self.up_bias + other.up_bias,
            }
        )

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> ContextualInjection:
        """See `Injection`."""
        return ContextualInjection(*_ordered(tensors), self.activation, self.input_norm)

    @classmethod
    def fresh(
        cls, hidden_size: int, rank: int, seed: int, activation: str = "gelu", input_norm: str = "rms"
    ) -> ContextualInjection:
        """Where training starts: `up` is zero, so that the model is unchanged; `down` is drawn by the seed."""
        generator = torch.Generator().manual_seed(seed)
        down = torch.randn(rank, hidden_size, generator=generator) / math.sqrt(hidden_size)
        up = torch.zeros(hidden_size, rank)
        return cls(down, torch.zeros(rank), up, torch.zeros(hidden_size), activation, input_norm)

    @classmethod
    def from_tensors(cls, spec: Mapping[str, str], tensors: Mapping[str, Tensor]) -> ContextualInjection:
        """Builds the injection from a file's entry; raises `ValueError` with the reason when it cannot."""
        allowed = {"activation": tuple(ACTIVATIONS), "input_norm": get_args(InputNorm), "positions": ("all",)}
        if set(spec) != {"kind", *allowed}:
            raise ValueError(
                f"a contextual injection must have the settings kind, {', '.join(allowed)}, not {sorted(spec)}"
            )
        for key, values in allowed.items():
            if spec[key] not in values:
                raise ValueError(f"{key} {spec[key]!r} is not one of {', '.join(values)}")
        names = ("down.weight", "down.bias", "up.weight", "up.bias")
        if set(tensors) != set(names):
            raise ValueError(f"a contextual injection needs the tensors {', '.join(names)}, not {sorted(tensors)}")
        if tensors["down.weight"].dim() != 2 or 0 in tensors["down.weight"].shape:
            raise ValueError(f"'down.weight' must be [rank, hidden], not {list(tensors['down.weight'].shape)}")
        rank, hidden = tensors["down.weight"].shape
        shapes = {"down.bias": [rank], "up.weight": [hidden, rank], "up.bias": [hidden]}
        for name, shape in shapes.items():
            if list(tensors[name].shape) != shape:
                raise ValueError(f"'{name}' must be {shape} for rank {rank}, not {list(tensors[name].shape)}")
        return cls(*_ordered(tensors), spec["activation"], spec["input_norm"])


def _ordered(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tensors["down.weight"], tensors["down.bias"], tensors["up.weight"], tensors["up.bias"]


KINDS: dict[str, Callable[[Mapping[str, str], Mapping[str, Tensor]], Injection]] = {
    "static": StaticInjection.from_tensors,
    "contextual": ContextualInjection.from_tensors,
}
"""How an injection is built from a file's entry, by the entry's `kind`."""
