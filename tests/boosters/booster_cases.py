"""Boosters to test with."""

from __future__ import annotations

from typing import Any

import torch

from aft_harness.boosters.booster import Booster

SPEC = {"kind": "static", "activation": "none", "input_norm": "none", "positions": "all"}


def made(*layers: int, hidden: int = 8, seed: int = 0, **provenance: Any) -> Booster:
    """A static booster with random vectors."""
    generator = torch.Generator().manual_seed(seed)
    return Booster.static({layer: torch.randn(hidden, generator=generator) for layer in layers or (2,)}, provenance)
