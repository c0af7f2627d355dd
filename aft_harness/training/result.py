"""What a training gives back: the booster and the account of how it was made. Knows numbers; trains nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.provenance import Score
from aft_harness.files import write_atomically
from aft_harness.results import plots


@dataclass(frozen=True)
class TrainingResult:
    """A trained booster and the account of its training.

    Attributes:
        booster: With full provenance.
        losses: A row for each optimiser step: `step`, `epoch`, `loss` (of the step's batch), `development_loss` (after
            the last step of an epoch, where there are development documents; missing elsewhere).
        measured_on: Whether `before` and `after` are of `development` or `training` examples.
        before: The unchanged model.
        after: The model with the booster.
        epoch_losses: Mean training loss of each epoch, as it ran.
        kept_epoch: The epoch whose values were kept, from 1.
        relative_norm: Mean norm of the delta over the mean norm of the residual stream, by layer.
        seconds: Wall time, model loading excluded.
        stages: Parts of it: `caching` what the frozen layers give, `training`, and `scoring` before, between and after.
        peak_memory: Bytes; None where the system does not say.
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

    @property
    def concerns(self) -> list[str]:
        """What is wrong with the training, a sentence each; empty where nothing is known to be."""
        found = []
        if not self.after.loss < self.before.loss:
            found.append(
                f"the booster does not help: on {self.measured_on} documents its loss is {self.after.loss:.4g}, the "
                f"unchanged model's {self.before.loss:.4g}; try a smaller learning rate or more training documents"
            )
        largest = max(self.relative_norm, key=lambda layer: self.relative_norm[layer])
        if not self.relative_norm[largest] < 1:
            found.append(
                f"the training diverged: the booster is {self.relative_norm[largest]:.3g} times as large as the "
                f"residual stream at layer {largest}; use a smaller learning rate"
            )
        return found

    def plot(self, path: str | Path | None = None) -> Any:
        """Draws training and development loss.

        Args:
            path: File to write, PNG or SVG; None writes none.

        Returns:
            The figure of matplotlib.
        """
        return plots.plot_losses(self.losses, Path(path) if path else None)

    def save_curves(self, path: str | Path) -> tuple[Path, Path]:
        """Writes the losses as CSV and as a picture beside it; `path` names either of the two."""
        table = Path(path).with_suffix(".csv")
        picture = Path(path) if Path(path).suffix in (".png", ".svg") else table.with_suffix(".png")
        write_atomically(table, self.losses.to_csv(index=False).encode())
        self.plot(picture)
        return table, picture


def loss_table(steps: list[tuple[float, ...]], development: list[Score | None]) -> pd.DataFrame:
    """The `losses` of a result, from each epoch's step losses and its development score."""
    rows: list[dict[str, float]] = []
    for epoch, (losses, score) in enumerate(zip(steps, development, strict=True), start=1):
        for place, loss in enumerate(losses, start=1):
            last = score.loss if score and place == len(losses) else math.nan
            rows.append({"step": len(rows) + 1, "epoch": epoch, "loss": loss, "development_loss": last})
    return pd.DataFrame(rows, columns=["step", "epoch", "loss", "development_loss"])
