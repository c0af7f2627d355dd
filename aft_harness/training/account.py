"""The account of a training on own texts: how far it has come, and its table of losses.

Knows numbers and token ids, all of it plain JSON. Knows nothing of models and of how texts come about.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd


@dataclass
class State:
    """How far a training has come; all of it is plain JSON.

    Attributes:
        epoch: The present one, from 1.
        step: Steps of it that are done.
        rows: A row of the table of losses for each step.
        drawn: Documents of this epoch for which texts have been sampled, in their order; of `rejection`.
        kept: Their right texts, by place: token ids. Documents that teach nothing have none.
        seen: What the sampled texts of this epoch are worth: see `measures`; their mean over the calls.
        scores: Of the development documents after each epoch.
        best: Loss and number of the epoch that is kept so far.
        elapsed: Seconds before an interruption.
    """

    epoch: int = 1
    step: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    drawn: int = 0
    kept: dict[str, list[list[int]]] = field(default_factory=dict)
    seen: list[dict[str, float]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    best: tuple[float, int] | None = None
    elapsed: float = 0.0


def mean(seen: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure."""
    return {name: sum(each[name] for each in seen) / len(seen) for name in seen[0]} if seen else {}


def loss_table(rows: Sequence[Mapping[str, float]], scores: Sequence[float]) -> pd.DataFrame:
    """The `losses` of a result."""
    table = pd.DataFrame(rows)
    table.insert(0, "step", range(1, len(table) + 1))
    table["development_loss"] = math.nan
    last = table.groupby("epoch")["step"].max()
    for epoch, score in enumerate(scores, start=1):
        if epoch in last:
            table.loc[table["step"] == last[epoch], "development_loss"] = score
    first = ["step", "epoch", "loss", "development_loss", "divergence"]
    return table[[*first, *(column for column in table.columns if column not in first)]]
