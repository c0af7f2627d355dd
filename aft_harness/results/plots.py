"""Plots of results, as PNG or SVG. Knows rows of tables; computes no statistics."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from aft_harness.boosters.booster import write_atomically
from aft_harness.errors import TaskError

FORMATS = ("png", "svg")


def plot_sweep(rows: Sequence[Mapping[str, Any]], over: str, path: Path) -> None:
    """Draws the change of every task's first metric over `over`, with 95% intervals, as PNG.

    Args:
        rows: As for `write_csv`.
        over: The column on the x axis: `layers` or `strength`.
        path: The file to write, atomically.
    """
    pyplot = backend()
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
        scale = 100 if own["gained"].notna().all() else 1
        deltas = scale * own["delta"]
        errors = [deltas - scale * own["ci_low"], scale * own["ci_high"] - deltas]
        axis.errorbar(own[over], deltas, yerr=errors, fmt="o", color="#4269d0", ecolor="#b8c4ea", markersize=4)
        chosen = own[own["chosen"].astype(bool)]
        label = "chosen on development documents"
        axis.plot(chosen[over], scale * chosen["delta"], "o", color="#ff725c", markersize=7, label=label)
        axis.axhline(0, color="#888888", linewidth=0.8)
        first = own.iloc[0]
        axis.set_title(f"{task}, {first['n']} test documents, baseline {scale * first['baseline']:.4g}", fontsize=10)
        axis.set_ylabel(f"change of {metric}{' (points)' if scale == 100 else ''}")
        axis.spines[["top", "right"]].set_visible(False)
        if len(chosen):
            axis.legend(frameon=False, fontsize=8)
    axes[-1, 0].set_xlabel({"layers": "decoder layer whose output is changed"}.get(over, over))
    save(figure, path)


def plot_transfer(rows: pd.DataFrame, path: Path) -> None:
    """Draws a heat map for each model: what boosters were trained on by what they were evaluated on.

    A cell tells the change in the metric's own unit, points for fractions, and is blue where the model got better and
    red where it got worse, in proportion to its column's largest change, or to twice the change that its documents
    could have shown, so that noise stays pale. A star marks what stands after correction at 5%.

    Args:
        rows: Of one leaderboard, see `leaderboard.load`; of several of one cell, the pooled one counts, or the first.
        path: The file to write, atomically; its suffix is its format.

    Raises:
        TaskError: Another suffix, or no rows.
    """
    check_format(path)
    if rows.empty:
        raise TaskError(f"{path}: there is no row to draw")
    ordered = rows.sort_values("seed", key=lambda seeds: seeds != "pooled", kind="stable")
    cells = ordered.drop_duplicates([*_MODEL, *_BOOSTER, "task"])
    panels = [_named(own) for _, own in cells.groupby(_MODEL, sort=False)]
    sizes = [own["source"].nunique() for own in panels]
    widest = max(own["task"].nunique() for own in panels)
    figure, axes = backend().subplots(
        len(panels),
        1,
        figsize=(2.6 + 1.35 * widest, sum(1.3 + 0.55 * size for size in sizes)),
        height_ratios=sizes,
        squeeze=False,
        layout="constrained",
    )
    for axis, own in zip(axes[:, 0], panels, strict=True):
        _draw_transfer(axis, own)
        if len(panels) > 1:
            first = own.iloc[0]
            axis.set_title(f"{first['model']}, {first['dtype']}", fontsize=10)
    save(figure, path)


_MODEL = ["model", "revision", "dtype"]
_BOOSTER = ["booster", "trained_n", "objective", "strength"]


def _named(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of one model with a `source`: as short a name of each booster as tells it from the others."""
    source = cells["trained_on"].where(cells["trained_on"] != "", cells["method"])
    for told in ([], *(_BOOSTER[:count] for count in range(1, len(_BOOSTER) + 1))):
        named = cells.assign(source=cells[told].astype(str).agg(", ".join, axis=1) if told else source)
        if not named.duplicated(["source", "task"]).any():
            break
    return named


def _draw_transfer(axis: Any, cells: pd.DataFrame) -> None:
    """The heat map of one model."""
    from lm_eval.api.registry import is_higher_better

    pyplot = backend()
    sources, tasks = list(dict.fromkeys(cells["source"])), list(dict.fromkeys(cells["task"]))
    axis.set(xlim=(0, len(tasks)), ylim=(len(sources), 0))
    labels = []
    for column, task in enumerate(tasks):
        own = cells[cells["task"] == task]
        metric = own["metric"].iloc[0]
        sign = -1 if is_higher_better(metric) is False else 1
        scale = 100 if (own["metric"] == metric).all() and _fraction(own) else 1
        largest = max(own["delta"].abs().max(), 2 * own["min_detectable"].min()) or 1.0
        labels.append(f"{task}\n{metric}\nn = {own['n'].iloc[0]}, {scale * own['baseline'].iloc[0]:.3g}")
        for _, cell in own.iterrows():
            row = sources.index(cell["source"])
            part = sign * cell["delta"] / largest
            shade = pyplot.get_cmap("RdBu")(0.5 + 0.4 * part)
            axis.add_patch(pyplot.Rectangle((column, row), 1, 1, color=shade, linewidth=0))
            star = "*" if pd.notna(cell["p_holm"]) and cell["p_holm"] < 0.05 else ""
            text = f"{scale * cell['delta']:+.{1 if scale == 100 else 3}f}{star}"
            ink = "white" if abs(part) > 0.7 else "black"
            axis.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=10, color=ink)
    axis.set_xticks([column + 0.5 for column in range(len(tasks))], labels, fontsize=8)
    names = [textwrap.fill(source.replace("+", " + "), 24) for source in sources]
    axis.set_yticks([row + 0.5 for row in range(len(sources))], names, fontsize=9)
    axis.set(xlabel="evaluated on (metric, documents, baseline)", ylabel="trained on")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def check_format(path: Path) -> None:
    """Refuses a file whose suffix names no format that plots are drawn in.

    Raises:
        TaskError: It does not.
    """
    if path.suffix.lstrip(".").lower() not in FORMATS:
        raise TaskError(f"{path}: a plot ends in .{' or .'.join(FORMATS)}")


def _fraction(rows: pd.DataFrame) -> bool:
    """Whether a metric is a fraction of documents, which is told in points."""
    metric = str(rows["metric"].iloc[0])
    return metric.startswith(("acc", "exact_match")) or bool(rows["gained"].notna().all())


def backend() -> Any:
    """Matplotlib's pyplot, drawing without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "aft_harness"  # the same picture is the same file
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, path: Path) -> None:
    """Writes a figure atomically, in the format of the file's suffix, and closes it."""
    form = path.suffix.lstrip(".").lower()
    drawn = io.BytesIO()
    figure.savefig(drawn, format=form, dpi=150, metadata={"Software": None} if form == "png" else {"Date": None})
    backend().close(figure)
    write_atomically(path, drawn.getvalue())
