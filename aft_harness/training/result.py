"""What a training gives back: the booster and the account of how it was made. Knows numbers; trains nothing."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.provenance import Provenance, Score
from aft_harness.files import write_atomically
from aft_harness.results import plots
from aft_harness.training.loop import EpochLosses
from aft_harness.training.recipe import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """A trained booster and a record of its training.

    Attributes:
        booster: The booster, with full provenance.
        losses: One row per optimiser step: `step`, `epoch`, `loss` (of the batch) and `development_loss` (after the
            last step of each epoch, if there are development documents; otherwise missing) and `divergence` (from the
            unsteered model on the plain texts of the step, in nats a token; missing if `keep` is 0).
        measured_on: Whether `before` and `after` were measured on `development` or `training` examples.
        before: Score of the unchanged model.
        after: Score of the model with the booster.
        epoch_losses: Mean training loss over the steps of each epoch.
        kept_epoch: The epoch whose parameters were kept, counted from 1.
        relative_norm: By layer, the mean norm of the delta divided by the mean norm of the residual stream.
        seconds: Wall-clock time, excluding model loading.
        stages: Seconds by stage: `caching` the output of the frozen layers, `training`, and `scoring` (before, between
            and after epochs).
        peak_memory: Peak memory in bytes; None if the system does not report it.
        held_out: Results on held-out pairs, with the columns of a leaderboard; None if there are none.
    """

    booster: Booster
    losses: pd.DataFrame
    measured_on: Literal["development", "training"]
    before: Score
    after: Score
    epoch_losses: tuple[float, ...]
    kept_epoch: int
    relative_norm: dict[int, float]
    seconds: float
    stages: dict[str, float]
    peak_memory: int | None
    held_out: pd.DataFrame | None = None

    @property
    def concerns(self) -> list[str]:
        """Known problems of the training, one sentence each; empty if there are none."""
        found = []
        if not self.after.loss < self.before.loss:
            found.append(
                f"the booster does not help: on {self.measured_on} documents its loss is {self.after.loss:.4g}, "
                f"against {self.before.loss:.4g} for the unchanged model; try a smaller learning rate or more "
                f"training documents"
            )
        largest = max(self.relative_norm, key=lambda layer: self.relative_norm[layer])
        if not self.relative_norm[largest] < 1:
            found.append(
                f"the training diverged: the booster is {self.relative_norm[largest]:.3g} times as large as the "
                f"residual stream at layer {largest}; use a smaller learning rate"
            )
        return found

    def plot(self, path: str | Path | None = None) -> Any:
        """Plots the training and development losses.

        Args:
            path: File to write, as PNG or SVG; None writes no file.

        Returns:
            The matplotlib figure.
        """
        return plots.plot_losses(self.losses, Path(path) if path else None)

    def save_curves(self, path: str | Path) -> tuple[Path, Path]:
        """Writes the losses as CSV and as an image next to it; `path` names either file."""
        table = Path(path).with_suffix(".csv")
        picture = Path(path) if Path(path).suffix in (".png", ".svg") else table.with_suffix(".png")
        write_atomically(table, self.losses.to_csv(index=False).encode())
        self.plot(picture)
        return table, picture


def finished(
    booster: Booster,
    origin: Mapping[str, Any],
    settings: Settings,
    layers: Sequence[int],
    *,
    recorded: Mapping[str, Any],
    licence: str | None,
    **measured: Any,
) -> TrainingResult:
    """The result of a training; warns of what is wrong with it.

    Args:
        booster: What was learned.
        origin: Its provenance, but for what came out, see `groundwork.provenance`.
        settings: How it was trained.
        layers: Which were trained.
        recorded: Further hyperparameters, as they were used.
        licence: Of the booster.
        **measured: All other fields of the result.
    """
    hyperparameters = {
        **settings.recorded(),
        "layers": list(layers),
        "optimiser": "adam",
        "kept_epoch": measured["kept_epoch"],
        **recorded,
    }
    found = {name: measured[name] for name in ("epoch_losses", "measured_on", "before", "after")}
    provenance = Provenance.of({**origin, **found, "hyperparameters": hyperparameters, "licence": licence})
    result = TrainingResult(booster=Booster(booster.injections, provenance), **measured)
    for concern in result.concerns:
        logger.warning(concern)
    return result


def loss_table(epochs: Sequence[EpochLosses], development: Sequence[Score | None]) -> pd.DataFrame:
    """The `losses` of a result, from each epoch's losses and its development score."""
    parts = []
    for number, (epoch, score) in enumerate(zip(epochs, development, strict=True), start=1):
        part = pd.DataFrame({"epoch": number, "loss": epoch.steps, "divergence": epoch.divergences or math.nan})
        part["development_loss"] = [math.nan] * (len(part) - 1) + [score.loss if score else math.nan]
        parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    table.insert(0, "step", range(1, len(table) + 1))
    return table[["step", "epoch", "loss", "development_loss", "divergence"]]
