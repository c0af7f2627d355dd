"""Boosters with results, as tests of cards, of pushing and of pulling share them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from aft_harness.boosters.booster import Booster
from aft_harness.results import leaderboard

BASE = {"name": "m/n", "fingerprint": "ab" * 32, "architecture": "LlamaForCausalLM", "layers": 4, "hidden_size": 32}


def booster(value: float = 1.0, **provenance: Any) -> Booster:
    """A booster that was trained on `toy_choice`, or so it says."""
    made = {"base_model": BASE, "method": "aft", "tasks": [{"task": "toy_choice", "split": "train", "n_train": 40}]}
    return Booster.static({1: torch.full((32,), value), 2: torch.ones(32)}, {**made, **provenance})


def row(of: Booster, task: str = "toy_choice", delta: float = 0.125, **cells: Any) -> dict[str, Any]:
    """A row of a leaderboard about a booster: 400 documents, of which 20 got worse."""
    made = {
        **{"model": "m/n", "revision": "abababababab", "architecture": "LlamaForCausalLM", "parameters": 1000},
        **{"booster": "b", "booster_sha256": of.sha256, "method": "aft", "objective": "both", "seed": "0", "seeds": 1},
        **{"trained_on": "toy_choice", "trained_n": 40, "layers": "1-2", "strength": 1.0, "booster_parameters": 64},
        **{"task": task, "task_version": "1.0", "num_fewshot": 0, "metric": "acc", "filter": "none", "n": 400},
        **{"baseline": 0.5, "steered": 0.5 + delta, "delta": delta, "ci_low": delta - 0.05, "ci_high": delta + 0.05},
        **{"gained": 20 + round(400 * delta), "lost": 20, "p_value": 1e-4, "p_holm": 2e-4, "min_detectable": 0.04},
        **{"transfer": int(task != "toy_choice"), "dtype": "float32", "device": "cpu", "lm_eval": "0.4.13"},
        **{"documents_sha256": "d" * 16, "prompts_sha256": "e" * 16, "aft_harness": "0.1.0", "date": "2026-11-26"},
    }
    return {**made, **cells}


def written(path: Path, *rows: dict[str, Any]) -> Path:
    """A leaderboard file with rows."""
    leaderboard.add(path, rows)
    return path
