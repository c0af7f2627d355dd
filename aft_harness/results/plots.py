"""Plots of results, as PNG or SVG. Knows tables of the schema and training curves; computes no statistics.

Figures are made without pyplot, whose state and backend belong to the caller's notebook or program.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Collection
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from aft_harness.errors import TaskError
from aft_harness.files import write_atomically
from aft_harness.results import heat_map
from aft_harness.results.heat_map import Panel, scale_of

FORMATS = ("png", "svg")

_BLUE, _PALE_BLUE, _RED, _GREY = "#4269d0", "#b8c4ea", "#ff725c", "#888888"

_plainly = matplotlib.rc_context({"text.parse_math": False})
"""Names may hold dollar signs, which are no formulas."""


class _Figure(Figure):
    """A figure that notebooks show, whether or not they have been told to use matplotlib."""

    def _repr_png_(self) -> bytes:
        return _bytes(self, "png")


@_plainly
def plot_sweep(frame: pd.DataFrame, over: str, path: Path) -> None:
    """Draws the change of every task's first metric over `over`, with 95% intervals.

    Args:
        frame: A table with the columns of a sweep, see `table.DEVELOPMENT`.
        over: The column on the x axis: `layers` or `strength`.
        path: The file to write, atomically; its suffix is its format.

    Raises:
        TaskError: Another suffix, no rows, or variants with several layers each.
        FileError: The file cannot be written.
    """
    _check(frame, path)
    try:
        frame = frame.assign(**{over: pd.to_numeric(frame[over])})
    except ValueError:
        raise TaskError(f"{path}: a plot over {over} needs a single value in each row") from None
    tasks = list(dict.fromkeys(frame["task"]))
    figure = _Figure(figsize=(7.2, 1.1 + 2.7 * len(tasks)), layout="constrained")
    axes = figure.subplots(len(tasks), 1, squeeze=False, sharex=True)[:, 0]
    chosen_points = []
    for axis, task in zip(axes, tasks, strict=True):
        rows = frame[frame["task"] == task]
        metric = rows["metric"].iloc[0]
        rows = rows[rows["metric"] == metric].sort_values(over)
        scale = scale_of(rows)
        deltas = scale * rows["delta"]
        # An end may lie on the point itself, and beyond it by rounding; that of an unknown interval is not drawn.
        errors = [(deltas - scale * rows["ci_low"]).clip(lower=0), (scale * rows["ci_high"] - deltas).clip(lower=0)]
        axis.errorbar(rows[over], deltas, yerr=errors, fmt="o", color=_BLUE, ecolor=_PALE_BLUE, markersize=4)
        chosen = rows[rows["chosen"].fillna(0).astype(bool)] if "chosen" in rows else rows[:0]
        if len(chosen):
            chosen_points = axis.plot(chosen[over], scale * chosen["delta"], "o", color=_RED, markersize=7, zorder=3)
        axis.axhline(0, color=_GREY, linewidth=0.8)
        first = rows.iloc[0]
        axis.set_title(f"{task}, {first['n']} test documents, baseline {scale * first['baseline']:.4g}", fontsize=10)
        axis.set_ylabel(f"change of {metric}{' (points)' if scale == 100 else ''}")
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel({"layers": "decoder layer whose output is changed"}.get(over, over))
    if over == "layers":
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    if chosen_points:
        # Below the axes, where it hides no interval.
        labels = ["chosen on development documents"]
        figure.legend(chosen_points, labels, loc="outside lower right", frameon=False, fontsize=8)
    save(figure, path)


@_plainly
def plot_transfer(rows: pd.DataFrame, path: Path, lower_is_better: Collection[str] = ()) -> None:
    """Draws a heat map for each model: what boosters were trained on by what they were evaluated on.

    A cell tells the change in the metric's own unit, points for fractions, and is blue where the model got better and
    red where it got worse, in proportion to its column's largest change, or to twice the change that its documents
    could have shown, so that noise stays pale. A star marks what stands after correction at 5%.

    Args:
        rows: Of one leaderboard, see `leaderboard.load`; of several of one cell, the pooled one counts, or the first. A
            task has a column for each choice of documents and prompts.
        path: The file to write, atomically; its suffix is its format.
        lower_is_better: Metrics of which less is better, such as a perplexity.

    Raises:
        TaskError: Another suffix, or no rows.
        FileError: The file cannot be written.
    """
    _check(rows, path)
    drawn = heat_map.panels(rows, lower_is_better)
    heights = [len(panel.sources) for panel in drawn]
    widest = max(len(panel.columns) for panel in drawn)
    figure = _Figure(
        figsize=(max(3.6 + 1.35 * widest, 5.5), 0.6 + sum(1.3 + 0.55 * height for height in heights)),
        layout="constrained",
    )
    axes = figure.subplots(len(drawn), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axis, panel in zip(axes, drawn, strict=True):
        mesh = _draw_transfer(axis, panel)
        axis.set_title(f"{panel.model}, {panel.dtype}", fontsize=10)
        bar = figure.colorbar(mesh, ax=axis, ticks=[-1, 0, 1], fraction=0.05)
        bar.ax.set_ylim(-1, 1)
        bar.ax.set_yticklabels(["worse", "no change", "better"], fontsize=8)
    figure.suptitle("Change by booster: fractions in points, other metrics in their own unit", fontsize=11)
    save(figure, path)


def _draw_transfer(axis: Axes, panel: Panel) -> Any:
    """Draws the heat map of one model and returns its mesh."""
    shades = np.full((len(panel.sources), len(panel.columns)), np.nan)
    labels = [
        f"{column.task}\n{column.metric}\nn = {column.n}, {column.baseline:.3g}"
        + (f"\nprompts {column.prompts}" if column.prompts else "")
        for column in panel.columns
    ]
    for (row, place), cell in panel.cells.items():
        shades[row, place] = cell.shade
        digits = 1 if panel.columns[place].scale == 100 else 3
        text = f"{cell.change:+.{digits}f}{'*' if cell.significant else ''}"
        ink = "white" if abs(cell.shade) > 0.7 else "black"
        axis.text(place + 0.5, row + 0.5, text, ha="center", va="center", fontsize=10, color=ink)
    # The ends of the colours are too dark to read on; the largest change keeps clear of them.
    mesh = axis.pcolormesh(np.ma.masked_invalid(shades), cmap="RdBu", vmin=-1.25, vmax=1.25)
    axis.invert_yaxis()
    axis.set_xticks([place + 0.5 for place in range(len(labels))], labels, fontsize=8)
    names = [textwrap.fill(source.replace("+", " + "), 24) for source in panel.sources]
    axis.set_yticks([row + 0.5 for row in range(len(names))], names, fontsize=9)
    axis.set(xlabel="evaluated on (metric, documents, baseline)", ylabel="trained on")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return mesh


@_plainly
def plot_losses(frame: pd.DataFrame, path: Path | None = None) -> Figure:
    """Draws the curves of a training.

    Args:
        frame: A row an optimiser step, in the columns `step`, `epoch` and `loss`, and where there are development
            documents `development_loss`, which is missing except at the ends of epochs.
        path: A file to write, atomically; its suffix is its format. None writes none.

    Returns:
        The figure, which a notebook shows.

    Raises:
        TaskError: Another suffix, or no rows.
        FileError: The file cannot be written.
    """
    _check(frame, path)
    figure = _Figure(figsize=(7.2, 3.6), layout="constrained")
    axis = figure.subplots()
    marker = "o" if len(frame) == 1 else None  # a line needs two points
    axis.plot(frame["step"], frame["loss"], color=_BLUE, linewidth=1, marker=marker, label="training, each step")
    if "development_loss" in frame and frame["development_loss"].notna().any():
        ends = frame[frame["development_loss"].notna()]
        axis.plot(ends["step"], ends["development_loss"], "o-", color=_RED, markersize=4, label="development")
    epochs = frame["epoch"].nunique()
    axis.set(xlabel=f"optimiser step ({epochs} epoch{'s' if epochs > 1 else ''})", ylabel="mean loss")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    if path is not None:
        save(figure, path)
    return figure


def check_format(path: Path) -> None:
    """Refuses a file whose suffix names no format that plots are drawn in.

    Raises:
        TaskError: It does not.
    """
    if path.suffix.lstrip(".").lower() not in FORMATS:
        raise TaskError(f"{path}: the file name of a plot must end in .{' or .'.join(FORMATS)}")


def _check(rows: pd.DataFrame, path: Path | None) -> None:
    if path is not None:
        check_format(path)
    if rows.empty:
        raise TaskError(f"{path or 'plot'}: there are no rows to plot")


def backend() -> Any:
    """Matplotlib's pyplot, drawing without a screen: for scripts, not for a caller's notebook."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Figure, path: Path) -> None:
    """Writes a figure atomically, in the format of the file's suffix, and closes it.

    Raises:
        FileError: The file cannot be written.
    """
    from matplotlib import pyplot

    drawn = _bytes(figure, path.suffix.lstrip(".").lower())
    pyplot.close(figure)
    write_atomically(path, drawn)


def _bytes(figure: Figure, form: str) -> bytes:
    drawn = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "aft_harness"}):  # the same picture is the same file
        figure.savefig(drawn, format=form, dpi=150, metadata={"Software": None} if form == "png" else {"Date": None})
    return drawn.getvalue()
