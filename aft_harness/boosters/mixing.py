"""Several boosters as one that does what all of them do at once. Knows boosters and provenance, and no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.injections import Injection
from aft_harness.boosters.provenance import Documents
from aft_harness.errors import BoosterError


def mix(parts: Sequence[tuple[Booster, float]]) -> Booster:
    """Mixes boosters into one that has their combined effect, each at its strength.

    All deltas are computed from the same unsteered hidden state and added, layer by layer.

    Args:
        parts: Boosters for the same model, with their strengths.

    Raises:
        BoosterError: There are no parts, they differ in hidden size or base model, or a strength is not finite.
    """
    if not parts:
        raise BoosterError("nothing to mix")
    bases = [booster.provenance.base_model for booster, _ in parts if booster.provenance.base_model]
    if len(labels := {base.label for base in bases}) > 1:
        raise BoosterError(f"boosters for different models cannot be mixed: {', '.join(sorted(labels))}")
    if len(sizes := {booster.hidden_size for booster, _ in parts}) > 1:
        raise BoosterError(f"boosters with different hidden sizes cannot be mixed: {sorted(sizes)}")
    injections: dict[int, Injection] = {}
    for booster, strength in parts:
        for layer, injection in booster.scaled(strength).injections.items():
            try:
                injections[layer] = injections[layer].plus(injection) if layer in injections else injection
            except ValueError as error:
                raise BoosterError(f"layer {layer}: {error}") from None
    return Booster.of(injections, _provenance(parts) | ({"base_model": bases[0]} if bases else {}))


def _provenance(parts: Sequence[tuple[Booster, float]]) -> dict[str, Any]:
    records = [
        {"booster_sha256": booster.sha256, "strength": strength, "provenance": booster.provenance.inherited()}
        for booster, strength in parts
    ]
    return {
        "method": "mix",
        "parts": records,
        "tasks": [record for booster, _ in parts for record in booster.provenance.tasks],
        "documents": Documents.union(booster.provenance.documents for booster, _ in parts),
    }
