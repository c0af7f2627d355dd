"""Boosters that tests of exports share."""

from __future__ import annotations

from typing import Any

import torch
from gguf_cases import WIDTH

from aft_harness.boosters.booster import Booster

BASE = {"name": "m/n", "fingerprint": "ab" * 32, "architecture": "LlamaForCausalLM", "layers": 4, "hidden_size": WIDTH}


def booster(*layers: int, width: int = WIDTH, seed: int = 0, base: Any = BASE) -> Booster:
    """Vectors of seeded noise at some layers."""
    generator = torch.Generator().manual_seed(seed)
    vectors = {layer: torch.randn(width, generator=generator) for layer in layers}
    return Booster.static(vectors, {"base_model": base} if base else None)


def vectors_of(made: Booster) -> dict[int, torch.Tensor]:
    """What a static booster adds, by layer."""
    return {layer: part.tensors["vector"] for layer, part in made.injections.items()}
