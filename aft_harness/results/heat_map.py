"""The cells of a heat map of transfer: what boosters were trained on by what they were evaluated on, for each model.

Knows which rows share a cell and how strong its colour is. Draws nothing; computes no statistics.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from aft_harness.results.table import POOLED, SIGNIFICANT, is_fraction, to_rows

MODEL = ("model", "revision", "dtype")
BOOSTER = ("booster", "trained_n", "objective", "strength")
EVALUATION = ("task", "num_fewshot", "n", "documents_sha256", "prompts_sha256")


@dataclass(frozen=True)
class Column:
    """What boosters were evaluated on.

    Attributes:
        task: Task name.
        metric: Its first metric.
        n: Documents.
        baseline: The unchanged model's result, in the unit of `scale`.
        scale: 100 where the metric is a fraction, whose changes are shown in points.
        prompts: Start of the digest of the prompts, where the task has several columns; otherwise empty.
    """

    task: str
    metric: str
    n: int
    baseline: float
    scale: int
    prompts: str


@dataclass(frozen=True)
class Cell:
    """One booster on one evaluation.

    Attributes:
        row: The row of the table that the cell shows.
        shade: From -1, worse, to 1, better: in proportion to the column's largest change, or to twice the change that
            its documents could have shown, so that noise stays pale.
        change: The change, in the unit of the column's scale.
        significant: Whether it stands after correction.
    """

    row: dict[str, Any]
    shade: float
    change: float
    significant: bool


@dataclass(frozen=True)
class Panel:
    """The heat map of one model.

    Attributes:
        model: Its name.
        dtype: Of its weights.
        sources: As short a name of each booster as tells it from the others; a line each.
        columns: The evaluations.
        cells: By line and column; boosters that were not evaluated on a task have none there.
    """

    model: str
    dtype: str
    sources: tuple[str, ...]
    columns: tuple[Column, ...]
    cells: dict[tuple[int, int], Cell]


def panels(rows: pd.DataFrame, lower_is_better: Collection[str] = ()) -> list[Panel]:
    """The heat maps of a leaderboard.

    Args:
        rows: Of one leaderboard, see `leaderboard.load`; of several of one cell, the pooled one counts, or the first. A
            task has a column for each choice of documents and prompts.
        lower_is_better: Metrics of which less is better, such as a perplexity.
    """
    ordered = rows.sort_values("seed", key=lambda seeds: seeds != POOLED, kind="stable")
    cells = ordered.drop_duplicates([*MODEL, *BOOSTER, *EVALUATION])
    cells = cells.assign(evaluation=cells.groupby(list(EVALUATION), sort=False, dropna=False).ngroup())
    grouped = cells.groupby(list(MODEL), sort=False, dropna=False)
    return [_panel(_with_sources(panel), lower_is_better) for _, panel in grouped]


def alike(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What all rows of one cell have in common: a booster on an evaluation, whatever the metric and the seed."""
    return tuple(str(row[column]) for column in (*MODEL, *BOOSTER, *EVALUATION))


def _with_sources(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of one model with a `source`: as short a name of each booster as tells it from the others."""
    source = cells["trained_on"].where(cells["trained_on"] != "", cells["method"])
    labelled = cells.assign(source=source)
    for count in range(1, len(BOOSTER) + 1):
        if not labelled.duplicated(["source", "evaluation"]).any():
            break
        labelled = cells.assign(source=cells[list(BOOSTER[:count])].astype(str).agg(", ".join, axis=1))
    return labelled


def _panel(cells: pd.DataFrame, lower_is_better: Collection[str]) -> Panel:
    sources, evaluations = list(dict.fromkeys(cells["source"])), list(dict.fromkeys(cells["evaluation"]))
    columns, found = [], {}
    for place, evaluation in enumerate(evaluations):
        rows = cells[cells["evaluation"] == evaluation]
        metric, task = rows["metric"].iloc[0], rows["task"].iloc[0]
        sign = -1 if metric in lower_is_better else 1
        scale = scale_of(rows) if (rows["metric"] == metric).all() else 1
        known = [value for value in (rows["delta"].abs().max(), 2 * rows["min_detectable"].min()) if pd.notna(value)]
        largest = max(known, default=0.0) or 1.0
        several = cells.loc[cells["task"] == task, "evaluation"].nunique() > 1
        prompts = (rows["prompts_sha256"].iloc[0][:8] or "unknown") if several else ""
        n, baseline = int(rows["n"].iloc[0]), scale * float(rows["baseline"].iloc[0])
        columns.append(Column(task, metric, n, baseline, scale, prompts))
        for row in to_rows(rows):
            significant = row["p_holm"] is not None and row["p_holm"] < SIGNIFICANT
            shade = float(np.clip(sign * row["delta"] / largest, -1, 1))
            found[sources.index(row["source"]), place] = Cell(row, shade, scale * row["delta"], significant)
    return Panel(str(cells["model"].iloc[0]), str(cells["dtype"].iloc[0]), tuple(sources), tuple(columns), found)


def scale_of(rows: pd.DataFrame) -> int:
    """100 where the rows' metric is a fraction, whose changes are shown in points."""
    return 100 if all(is_fraction(row) for row in to_rows(rows[["metric", "gained"]])) else 1
