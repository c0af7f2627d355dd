"""The pictures of a report: sweeps, training curves, and gain against cost in plain text.

Knows which numbers a picture shows and what its table says. Where they lie in it is the work of `charts.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pandas as pd

from aft_harness.publish.report import charts
from aft_harness.publish.report.charts import Chart, Point, Series
from aft_harness.publish.report.findings import Row, over_of
from aft_harness.publish.report.sources import Curve
from aft_harness.results import table
from aft_harness.results.table import POOLED, is_fraction
from aft_harness.text import printable

PLAIN_TEXT = "plain_text"
"""The task that says what a booster costs: how well the model still predicts ordinary text."""

MOST_POINTS = 60
"""Points of the picture of gain against cost."""

_VARIANT = ("model", "revision", "dtype", "booster", "booster_sha256", "strength", "seed")


def sweep_charts(rows: Sequence[Row], lower_is_better: Collection[str]) -> list[tuple[str, list[Chart]]]:
    """For each sweep its name and pictures: the change on each test task, then the development loss."""
    found = []
    for name in dict.fromkeys(row["sweep"] for row in rows if "sweep" in row):
        swept = [row for row in rows if row.get("sweep") == name]
        over = over_of(swept)
        made = [
            _sweep_chart(swept, task, over, lower_is_better) for task in dict.fromkeys(row["task"] for row in swept)
        ]
        made.append(_development_chart(swept, over))
        found.append((name, [each for each in made if each is not None]))
    return found


def _sweep_chart(rows: Sequence[Row], task: str, over: str, lower_is_better: Collection[str]) -> Chart | None:
    mine = [row for row in rows if row["task"] == task]
    metric = next((row["metric"] for row in mine if row["p_holm"] is not None), mine[0]["metric"])
    mine = [row for row in mine if row["metric"] == metric]
    xs, names = _along(mine, over)
    scale = 100 if all(map(is_fraction, mine)) else 1
    points = [
        Point(
            x,
            scale * row["delta"],
            _scaled(row["ci_low"], scale),
            _scaled(row["ci_high"], scale),
            label=f"{_of(over, row)}: {table.change(row)}",
            marked=row["chosen"] == 1,
        )
        for x, row in sorted(zip(xs, mine, strict=True), key=lambda pair: pair[0])
    ]
    cells = [table.cells(row) for row in mine]
    lower = ", lower is better" if metric in lower_is_better else ""
    unit = " (points)" if scale == 100 else ""
    return charts.chart(
        f"{task}: change of {metric}{unit}{lower}, {mine[0]['n']} test documents",
        [Series("95% interval over documents", points)],
        _over_title(over),
        f"change of {metric}{unit}",
        whole=over == "layers",
        with_zero=True,
        names=names,
        head=[_of_title(over), "baseline", "steered", "change [95% interval]", "p", "chosen"],
        rows=[
            [_of(over, row), told["baseline"], told["steered"], table.change(row), told["p"], told.get("chosen", "")]
            for row, told in zip(mine, cells, strict=True)
        ],
    )


def _development_chart(rows: Sequence[Row], over: str) -> Chart | None:
    once = list({_of(over, row): row for row in rows if row["development_loss"] is not None}.values())
    if not once:
        return None
    xs, names = _along(once, over)
    ordered = sorted(zip(xs, once, strict=True), key=lambda pair: pair[0])
    points = [
        Point(
            x,
            row["development_loss"],
            label=f"{_of(over, row)}: {row['development_loss']:.4f}",
            marked=row["chosen"] == 1,
        )
        for x, row in ordered
    ]
    measure = once[0]["development_measure"] or "loss"
    return charts.chart(
        f"{measure} on {once[0]['development_n'] or 'the'} development documents, by which the choice was made",
        [Series(measure, points, line=True, style=2)],
        _over_title(over),
        measure,
        whole=over == "layers",
        names=names,
        head=[_of_title(over), measure, "accuracy", "chosen"],
        rows=[
            [_of(over, row), told["loss"], told["accuracy"], told["chosen"]]
            for _, row in ordered
            for told in [table.cells(row)]
        ],
    )


def _along(rows: Sequence[Row], over: str) -> tuple[list[float], list[str]]:
    """Where rows lie along a sweep; names of the places where its values are no numbers."""
    values = [row[over] for row in rows]
    try:
        return [float(value) for value in values], []
    except (TypeError, ValueError):
        names = list(dict.fromkeys(map(str, values)))
        return [float(names.index(str(value))) for value in values], names


def _of(over: str, row: Row) -> str:
    return str(row["layers"]) if over == "layers" else f"{row['strength']:g}"


def _of_title(over: str) -> str:
    return "layer" if over == "layers" else over


def _over_title(over: str) -> str:
    return "decoder layer whose output is changed" if over == "layers" else over


def training_chart(curve: Curve) -> Chart | None:
    """The picture of a training's losses."""
    frame = curve.frame
    steps = [Point(step, loss) for step, loss in zip(frame["step"], frame["loss"], strict=True)]
    series = [Series("training, each step", steps, line=True, dots=False)]
    ends = frame[frame["development_loss"].notna()] if "development_loss" in frame else frame[:0]
    if len(ends):
        columns = (ends[name] for name in ("step", "epoch", "development_loss"))
        points = [
            Point(step, loss, label=f"epoch {epoch:g}: {loss:.4f}") for step, epoch, loss in zip(*columns, strict=True)
        ]
        series.append(Series("development, each epoch", points, line=True, style=2))
    by_epoch = frame.groupby("epoch")
    development = ends.groupby("epoch")["development_loss"].last() if len(ends) else pd.Series(dtype=float)
    return charts.chart(
        f"{curve.name}: loss by optimiser step",
        series,
        "optimiser step",
        "mean loss",
        whole=True,
        head=["epoch", "steps", "mean training loss", "development loss"],
        rows=[
            [f"{epoch:g}", str(len(group)), f"{group['loss'].mean():.4f}", _four(development.get(epoch))]
            for epoch, group in by_epoch
        ],
    )


def _four(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def cost_chart(rows: Sequence[Row], lower_is_better: Collection[str]) -> Chart | None:
    """Gain on tasks against the cost in plain text, for each booster that was evaluated on both."""
    costs = {_variant(row): row for row in rows if row["task"] == PLAIN_TEXT and row["delta"] is not None}
    first: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: row["p_holm"] is None):  # a corrected row has its task's first metric
        first.setdefault(row["task"], row["metric"])
    others = [
        row
        for row in rows
        if row["task"] != PLAIN_TEXT
        and row["metric"] == first[row["task"]]
        and is_fraction(row)
        and _variant(row) in costs
    ]
    own = [row for row in others if row["transfer"] == 0] or others
    pooled = {(row["booster"], row["task"]) for row in own if row["seed"] == POOLED}
    kept = [row for row in own if row["seed"] == POOLED or (row["booster"], row["task"]) not in pooled][:MOST_POINTS]
    if not kept:
        return None
    points, lines = [], []
    for number, row in enumerate(kept, start=1):
        cost = costs[_variant(row)]
        strength = "" if row["strength"] in (None, 1) else f" at strength {row['strength']:g}"
        who = f"{printable(row['booster'])}{strength} on {printable(row['task'])}"
        points.append(
            Point(
                cost["delta"],
                100 * row["delta"],
                _scaled(row["ci_low"], 100),
                _scaled(row["ci_high"], 100),
                cost["ci_low"],
                cost["ci_high"],
                label=f"{number}: {who}: {table.change(row)}; plain text {table.change(cost)}",
                sign=str(number),
            )
        )
        lines.append([str(number), who, table.change(row), table.change(cost), f"{cost['n']}"])
    metric = next(iter(costs.values()))["metric"]
    lower = ", lower is better" if metric in lower_is_better else ""
    return charts.chart(
        f"gain on the task against the change of {metric} of plain text",
        [Series("95% intervals over documents", points)],
        f"change of {metric} on {PLAIN_TEXT}{lower}",
        "gain on the task (points)",
        with_zero=True,
        crossed=True,
        head=["", "booster and task", "gain [95% interval]", f"change of {metric} of plain text", "passages"],
        rows=lines,
    )


def _variant(row: Row) -> tuple[str, ...]:
    return tuple(str(row[key]) for key in _VARIANT)


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else scale * value
