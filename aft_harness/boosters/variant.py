"""What is evaluated: a booster at a strength under a name, and how results record it.

Knows boosters. A variant is handed down as an argument; no model object holds one that others exchange.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import BaseModel, ConfigDict

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.model_identity import ModelIdentity


@dataclass(frozen=True)
class Variant:
    """A booster at a strength, under a name: the unit of evaluation.

    Attributes:
        name: Name in tables; for a booster given by its path, the path without its folder.
        booster: None for the baseline.
        strength: Factor on the booster's delta.
    """

    name: str
    booster: Booster | None = None
    strength: float = 1.0

    @property
    def folder(self) -> str:
        """The name in a form that is valid as a folder name."""
        return re.sub(r"[^\w.+-]+", "-", self.name.replace(".safetensors", "")).strip("-.") or "booster"


BASELINE = Variant("baseline")
"""The unchanged model."""


def distinct(variants: Sequence[Variant]) -> list[Variant]:
    """The variants under names that differ, also as folders: the second `a` is called `a (2)`."""
    taken: set[str] = set()
    renamed = []
    for variant in variants:
        number, candidate = 1, variant
        while candidate.folder.casefold() in taken:
            number += 1
            candidate = replace(variant, name=f"{variant.name} ({number})")
        taken.add(candidate.folder.casefold())
        renamed.append(candidate)
    return renamed


class VariantRecord(BaseModel):
    """What a results file says of the variant that ran, under `config.aft`.

    Attributes:
        version: Of aft_harness.
        base_model: Which model ran.
        device: Type of the device, such as `cpu`.
        booster_sha256: Identity of the booster; None for the baseline, whose further fields are missing.
        layers: Layers whose output was changed.
        strength: Factor on the booster's delta.
        method: How the booster was made.
        objective: What its training minimised.
        trained_on: Tasks that it learned from.
        trained_n: Number of documents that it learned from.
        seed: Of its training.
        booster_parameters: Number of learned numbers.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: str
    base_model: ModelIdentity
    device: str = ""
    booster_sha256: str | None = None
    layers: tuple[int, ...] = ()
    strength: float = 1.0
    method: str | None = None
    objective: str | None = None
    trained_on: tuple[str, ...] = ()
    trained_n: int | None = None
    seed: int | None = None
    booster_parameters: int | None = None

    @classmethod
    def of(cls, variant: Variant, base_model: ModelIdentity, device: str, version: str) -> VariantRecord:
        """The record of a variant on a model."""
        common = {"version": version, "base_model": base_model, "device": device}
        if variant.booster is None:
            return cls.model_validate({**common, "booster_sha256": None})
        provenance = variant.booster.provenance
        return cls.model_validate(
            {
                **common,
                "booster_sha256": variant.booster.sha256,
                "layers": variant.booster.layers,
                "strength": variant.strength,
                "method": provenance.method,
                "objective": provenance.objective,
                "trained_on": provenance.trained_on,
                "trained_n": provenance.trained_n,
                "seed": provenance.seed,
                "booster_parameters": variant.booster.parameters,
            }
        )

    def to_json(self) -> dict[str, object]:
        """The JSON object of a results file."""
        return self.model_dump(mode="json", exclude_unset=True)
