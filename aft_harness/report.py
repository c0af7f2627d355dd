"""Results as tables, CSV files and plots. Knows paired results and where they came from; computes no statistics."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from aft_harness.booster import Booster, write_atomically
from aft_harness.statistics import PairedCount

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
    paired: PairedCount,
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
        "layers": ",".join(map(str, booster.layers)),
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


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes rows under `COLUMNS`, atomically.

    Raises:
        BoosterError: The folder does not exist or cannot be written.
    """
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    write_atomically(path, frame.to_csv(index=False).encode())


def said(paired: PairedCount) -> str:
    """A paired result in one line: n, both accuracies, the change with its interval, and the exact test."""
    return (
        f"n = {paired.n}, {paired.baseline:.1%} -> {paired.steered:.1%}, {100 * paired.delta:+.1f} points "
        f"[{100 * paired.ci_low:+.1f}, {100 * paired.ci_high:+.1f}], gained {paired.gained}, lost {paired.lost}, "
        f"exact McNemar p = {paired.p_value:.2g}"
    )


def plot_sweep(rows: Sequence[Mapping[str, Any]], over: str, path: Path) -> None:
    """Draws the change of every task's first metric over `over`, with 95% intervals, as PNG.

    Args:
        rows: As for `write_csv`.
        over: The column on the x axis: `layers` or `strength`.
        path: The file to write, atomically.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    frame = pd.DataFrame(rows)
    frame[over] = pd.to_numeric(frame[over])
    tasks = list(dict.fromkeys(frame["task"]))
    figure, axes = pyplot.subplots(
        len(tasks), 1, figsize=(7.2, 0.9 + 2.7 * len(tasks)), squeeze=False, sharex=True, layout="constrained"
    )
    for axis, task in zip(axes[:, 0], tasks, strict=True):
        own = frame[frame["task"] == task]
        metric = own["metric"].iloc[0]
        own = own[own["metric"] == metric].sort_values(over)
        deltas = 100 * own["delta"]
        errors = [deltas - 100 * own["ci_low"], 100 * own["ci_high"] - deltas]
        axis.errorbar(own[over], deltas, yerr=errors, fmt="o", color="#4269d0", ecolor="#b8c4ea", markersize=4)
        chosen = own[own["chosen"].astype(bool)]
        label = "chosen on development documents"
        axis.plot(chosen[over], 100 * chosen["delta"], "o", color="#ff725c", markersize=7, label=label)
        axis.axhline(0, color="#888888", linewidth=0.8)
        first = own.iloc[0]
        axis.set_title(f"{task}, {first['n']} test documents, baseline {first['baseline']:.1%}", fontsize=10)
        axis.set_ylabel(f"change of {metric} (points)")
        axis.spines[["top", "right"]].set_visible(False)
        if len(chosen):
            axis.legend(frameon=False, fontsize=8)
    axes[-1, 0].set_xlabel({"layers": "decoder layer whose output is changed"}.get(over, over))
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150, metadata={"Software": None})
    pyplot.close(figure)
    write_atomically(path, drawn.getvalue())
