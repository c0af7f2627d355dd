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
        injections: The injection for each decoder layer whose output is changed, by 0-based index.
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
                    raise BoosterError(f"layers.{layer}.{name} contains NaN or infinity")
        sizes = {injection.hidden_size for injection in self.injections.values()}
        if len(sizes) > 1:
            raise BoosterError(f"all layers of a booster must have the same hidden size, not {sorted(sizes)}")
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
        """A booster with float32 copies of injections, which may be on any device, of any dtype and in training."""

        def copied(injection: Injection) -> Injection:
            tensors = injection.tensors.items()
            return injection.with_tensors(
                {name: tensor.detach().to("cpu", torch.float32).clone() for name, tensor in tensors}
            )

        return cls({layer: copied(injection) for layer, injection in injections.items()}, Provenance.of(provenance))

    def check_fits(self, hidden_size: int, layers: int, model: str) -> None:
        """Refuses a model that the booster does not fit.

        Args:
            hidden_size: Width of the model's residual stream.
            layers: Number of its decoder layers.
            model: Its name, for messages.

        Raises:
            BoosterError: The model has another width, or lacks a layer.
        """
        if self.hidden_size != hidden_size:
            raise BoosterError(f"the booster is for a hidden size of {self.hidden_size}; {model} has {hidden_size}")
        if self.layers[-1] >= layers:
            raise BoosterError(
                f"the booster's layer {self.layers[-1]} is out of range: {model} has layers 0 to {layers - 1}"
            )

    @property
    def layers(self) -> tuple[int, ...]:
        """The changed layers, ascending."""
        return tuple(self.injections)

    @property
    def hidden_size(self) -> int:
        """Hidden size of the models that this booster fits."""
        return next(iter(self.injections.values())).hidden_size

    @property
    def parameters(self) -> int:
        """Number of learned parameters."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their full names in the file, sorted."""
        named = {
            f"layers.{layer}.{name}": tensor
            for layer, injection in self.injections.items()
            for name, tensor in injection.tensors.items()
        }
        return dict(sorted(named.items()))

    @property
    def specs(self) -> dict[str, dict[str, str]]:
        """The file's `injections` entry: the kind and settings of each layer's injection."""
        return {str(layer): injection.spec for layer, injection in self.injections.items()}

    @cached_property
    def sha256(self) -> str:
        """Digest of the booster's effect, independent of its date, file and provenance."""
        digest = hashlib.sha256()
        for name, tensor in self.tensors.items():
            data = tensor.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4").tobytes()
            digest.update(f"{name}\0{list(tensor.shape)}\0".encode() + data)
        digest.update(canonical(self.specs).encode())
        return digest.hexdigest()

    @property
    def is_zero(self) -> bool:
        """Whether the booster leaves the model unchanged."""
        return all(injection.is_zero for injection in self.injections.values())

    def scaled(self, strength: float) -> Booster:
        """A copy of this booster with every delta multiplied by `strength` and the same provenance.

        Raises:
            BoosterError: The strength is not a finite number.
        """
        if not math.isfinite(strength):
            raise BoosterError(f"strength {strength} is not a finite number")
        return Booster({layer: part.scaled(strength) for layer, part in self.injections.items()}, self.provenance)

    def with_provenance(self, **fields: Any) -> Booster:
        """A copy of this booster with some fields of its provenance changed."""
        return Booster(self.injections, self.provenance.changed(**fields))

    def applied_to(self, model: Any, strength: float = 1.0) -> AbstractContextManager[Any]:
        """A context manager that steers a transformers model with this booster.

        Example:
            >>> with booster.applied_to(model, strength=0.5):  # doctest: +SKIP
            ...     model.generate(**inputs)
        """
        return PROVIDED["applied_to"](self, model, strength)

    def push_to_hub(self, repo: str, **options: Any) -> str:
        """Publishes the booster in a repository of the Hugging Face Hub, with a card; see `aft push --help`.

        Args:
            repo: `owner/repo`, made if it does not exist.
            **options: `leaderboards` (CSV files, whose rows about this booster become the card's claims), `file`,
                `base_model`, `private`, `revision`, `token`.

        Returns:
            The address of the commit's page.

        Raises:
            AftError: It cannot be pushed; the message is one line.

        Example:
            >>> booster.push_to_hub("me/arc", leaderboards=["results.csv"])  # doctest: +SKIP
        """
        return PROVIDED["push_to_hub"](self, repo, **options)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the booster as safetensors, atomically; see `file_format.save`."""
        from aft_harness.boosters import file_format

        file_format.save(self, path)

    @classmethod
    def load(cls, spec: Any) -> Booster:
        """Loads a booster in the syntax of `vector=`: a path, a name, an `hf://` address, or several with strengths.

        Raises:
            AftError: The booster cannot be loaded; the message names the file and the reason.

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
