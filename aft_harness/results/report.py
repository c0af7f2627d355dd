"""Results as tables and CSV files. Knows paired results and where they came from; computes no statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from aft_harness.boosters.booster import Booster, write_atomically
from aft_harness.results.statistics import Paired

COLUMNS = (
    "model",
    "booster",
    "booster_sha256",
    "method",
    "objective",
    "trained_on",
    "trained_n",
    "layers",
    "strength",
    "booster_parameters",
    "seed",
    "development_n",
    "development_accuracy",
    "development_loss",
    "chosen",
    "task",
    "metric",
    "n",
    "baseline",
    "steered",
    "delta",
    "ci_low",
    "ci_high",
    "gained",
    "lost",
    "p_value",
)
"""Of a CSV: one row a booster, strength, task and metric; the names are those of the leaderboard."""


def row(
    model: str,
    name: str,
    booster: Booster,
    strength: float,
    task: str,
    metric: str,
    paired: Paired,
    development: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One result, flat.

    Args:
        model: Name of the base model.
        name: What to call the booster; never a path of this machine.
        booster: What was evaluated.
        strength: At which strength.
        task: On which task.
        metric: By which metric.
        paired: What came out.
        development: The columns `development_*` and `chosen`, where something was chosen.
    """
    provenance = booster.provenance
    tasks = provenance.get("tasks", [])
    return {
        "model": model,
        "booster": name,
        "booster_sha256": booster.sha256,
        "method": provenance.get("method", ""),
        "objective": provenance.get("objective", ""),
        "trained_on": "+".join(str(told.get("task")) for told in tasks),
        "trained_n": sum(told.get("n_train", 0) for told in tasks),
        "layers": layer_ranges(booster.layers),
        "strength": strength,
        "booster_parameters": booster.parameters,
        "seed": provenance.get("seed", ""),
        **(development or {}),
        "task": task,
        "metric": metric,
        "n": paired.n,
        "baseline": paired.baseline,
        "steered": paired.steered,
        "delta": paired.delta,
        "ci_low": paired.ci_low,
        "ci_high": paired.ci_high,
        "gained": paired.gained,
        "lost": paired.lost,
        "p_value": paired.p_value,
    }


def layer_ranges(layers: Sequence[int]) -> str:
    """Layers as text: `8`, `8,16`, `0-29`."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes rows under `COLUMNS`, atomically.

    Raises:
        BoosterError: The folder does not exist or cannot be written.
    """
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    write_atomically(path, frame.to_csv(index=False).encode())


def said(paired: Paired) -> str:
    """A paired result in one line: n, both means, the change with its interval, and the test."""
    if paired.gained is None:
        return (
            f"n = {paired.n}, {paired.baseline:.4g} -> {paired.steered:.4g}, {paired.delta:+.4g} "
            f"[{paired.ci_low:+.4g}, {paired.ci_high:+.4g}], sign-flip p = {paired.p_value:.2g}"
        )
    return (
        f"n = {paired.n}, {paired.baseline:.1%} -> {paired.steered:.1%}, {100 * paired.delta:+.1f} points "
        f"[{100 * paired.ci_low:+.1f}, {100 * paired.ci_high:+.1f}], gained {paired.gained}, lost {paired.lost}, "
        f"exact McNemar p = {paired.p_value:.2g}"
    )
