"""What a file of another tool says of the booster that is in it, where its format has a place for that.

Knows the record of an export, and adds the whole identity of the base model, so that an import can give it back.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aft_harness.publish.export.target import Order

KEY = "aft.origin"
"""Of the metadata that holds all of it; the other keys are for people and programs that look for one value."""

MODEL = "base_model_identity"
"""In the JSON: the base model by its fingerprint, and not only by its label."""


def text(order: Order) -> str:
    """The record of an export as JSON."""
    booster = order.variant.booster
    base = booster.provenance.base_model if booster else None
    identity = {} if base is None else {MODEL: base.model_dump(mode="json")}
    return json.dumps({**order.record, **identity}, sort_keys=True)


def entries(order: Order) -> dict[str, str | float]:
    """The same as metadata with flat keys."""
    record = order.record
    return {
        "aft.booster_sha256": record["booster_sha256"],
        "aft.strength": float(record["strength"]),
        "aft.base_model": record["base_model"],
        KEY: text(order),
    }
