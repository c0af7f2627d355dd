"""What a booster is: injections by decoder layer, and where they came from.

Knows identity and strength. What one injection does stands in `injections.py`, the file in `file_format.py`. Knows
nothing of models, tasks or how boosters are made; attaching a booster to a running model is the engine's work.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from aft_harness.boosters.injections import Injection, StaticInjection
from aft_harness.boosters.provenance import Provenance
from aft_harness.errors import BoosterError

PROVIDED: dict[str, Callable[..., Any]] = {}
"""Methods of a booster that need more than this floor knows, by name: a floor above puts them here."""


@dataclass(frozen=True, eq=False)
class Booster:
    """Injections for one or more decoder layers, plus provenance.

    Attributes:
        injections: By 0-based index of the decoder layer whose output is changed.
        provenance: Where the booster came from.
    """

    injections: Mapping[int, Injection]
    provenance: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        """Orders the layers and refuses what no file could hold."""
        if not self.injections:
            raise BoosterError("a booster needs at least one layer")
        for layer, injection in self.injections.items():
            if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
                raise BoosterError(f"layer {layer!r} is out of range: layers are counted from 0")
            for name, tensor in injection.tensors.items():
                if not torch.isfinite(tensor).all():
                    raise BoosterError(f"layers.{layer}.{name} holds NaN or infinity")
        sizes = {injection.hidden_size for injection in self.injections.values()}
        if len(sizes) > 1:
            raise BoosterError(f"layers of one booster must have one hidden size, not {sorted(sizes)}")
        object.__setattr__(self, "injections", dict(sorted(self.injections.items())))

    @classmethod
    def static(cls, vectors: Mapping[int, Tensor], provenance: Provenance | Mapping[str, Any] | None = None) -> Booster:
        """A booster that adds `vectors[layer]` ([hidden]) to the output of each layer.

        Example:
            >>> Booster.static({8: torch.zeros(576)}).layers
            (8,)
        """
        return cls.of({layer: StaticInjection(vector) for layer, vector in vectors.items()}, provenance)

    @classmethod
    def of(
        cls, injections: Mapping[int, Injection], provenance: Provenance | Mapping[str, Any] | None = None
    ) -> Booster:
        """A booster with float32 copies of injections that may be on any device, in any dtype and still training."""

        def copied(injection: Injection) -> Injection:
            tensors = injection.tensors.items()
            return injection.with_tensors(
                {name: tensor.detach().to("cpu", torch.float32).clone() for name, tensor in tensors}
            )

        return cls({layer: copied(injection) for layer, injection in injections.items()}, Provenance.of(provenance))

    @property
    def layers(self) -> tuple[int, ...]:
        """The changed layers, ascending."""
        return tuple(self.injections)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream this booster fits."""
        return next(iter(self.injections.values())).hidden_size

    @property
    def parameters(self) -> int:
        """Number of learned numbers."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their full name in the file, sorted by name."""
        named = {
            f"layers.{layer}.{name}": tensor
            for layer, injection in self.injections.items()
            for name, tensor in injection.tensors.items()
        }
        return dict(sorted(named.items()))

    @property
    def specs(self) -> dict[str, dict[str, str]]:
        """The file's `injections` entry: what kind of injection each layer has."""
        return {str(layer): injection.spec for layer, injection in self.injections.items()}

    @cached_property
    def sha256(self) -> str:
        """Identity of what the booster does: the same whatever its date, file or provenance."""
        digest = hashlib.sha256()
        for name, tensor in self.tensors.items():
            data = tensor.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4").tobytes()
            digest.update(f"{name}\0{list(tensor.shape)}\0".encode() + data)
        digest.update(canonical(self.specs).encode())
        return digest.hexdigest()

    @property
    def is_zero(self) -> bool:
        """Whether attaching it would leave the model unchanged."""
        return all(injection.is_zero for injection in self.injections.values())

    def scaled(self, strength: float) -> Booster:
        """This booster with every delta multiplied by `strength`; the provenance is kept.

        Raises:
            BoosterError: The strength is not a finite number.
        """
        if not math.isfinite(strength):
            raise BoosterError(f"strength {strength} is not a finite number")
        return Booster({layer: part.scaled(strength) for layer, part in self.injections.items()}, self.provenance)

    def with_provenance(self, **fields: Any) -> Booster:
        """This booster with some fields of its provenance changed."""
        return Booster(self.injections, self.provenance.changed(**fields))

    def applied_to(self, model: Any, strength: float = 1.0) -> AbstractContextManager[Any]:
        """A context in which a model of transformers is steered by this booster.

        Example:
            >>> with booster.applied_to(model, strength=0.5):  # doctest: +SKIP
            ...     model.generate(**inputs)
        """
        return PROVIDED["applied_to"](self, model, strength)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the booster as safetensors, atomically; see `file_format.save`."""
        from aft_harness.boosters import file_format

        file_format.save(self, path)

    @classmethod
    def load(cls, spec: Any) -> Booster:
        """The booster that `vector=` would name: a path, an `hf://` address, or several of them at strengths.

        Raises:
            AftError: With the file's name and the reason, whatever is wrong with it.

        Example:
            >>> Booster.load("math.safetensors:0.5+code.safetensors")  # doctest: +SKIP
        """
        from aft_harness.boosters import references

        variant = references.load(spec)
        assert variant.booster is not None
        return variant.booster if variant.strength == 1 else variant.booster.scaled(variant.strength)


def canonical(value: object) -> str:
    """The same JSON text for equal values, which digests are made of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
