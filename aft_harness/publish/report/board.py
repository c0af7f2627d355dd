"""The leaderboard and the heat maps of a report, as values for its template and its script.

Knows rows of tables. Knows nothing of HTML.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aft_harness.publish.report.findings import Row, improvement, outcome
from aft_harness.results import heat_map, table
from aft_harness.results.heat_map import Cell, Panel
from aft_harness.results.table import is_fraction
from aft_harness.text import printable

OUTCOMES = {"gain": "gained", "loss": "lost", "open": "undecided", "none": "not corrected"}
"""What a reader sees of an outcome."""

SHADES = 8
"""Steps of colour in either direction."""

STATIC_ROWS = 100
"""Rows of the leaderboard that are in the page itself, for readers without JavaScript."""

MOST_LINES = 60
"""Boosters of a heat map; the leaderboard has all."""


@dataclass(frozen=True)
class Column:
    """A column of the leaderboard.

    Attributes:
        key: Its name in the data.
        title: Its heading.
        number: Whether it is sorted as numbers and aligned to the right.
        wide: Whether narrow screens leave it out.
    """

    key: str
    title: str
    number: bool = False
    wide: bool = False


def leaderboard_columns(rows: Sequence[Row]) -> list[Column]:
    """The columns; model, strength and seed only where rows differ in them, a corrected p where there is one."""
    compared = any(row["p_holm"] is not None for row in rows)
    differing = {key for key in ("model", "strength", "seed") if len({str(row[key]) for row in rows}) > 1}
    found = [
        Column("outcome", "Outcome"),
        Column("model", "Model", wide=True),
        Column("booster", "Booster"),
        Column("strength", "Strength", True, wide=True),
        Column("seed", "Seed", wide=True),
        Column("task", "Task"),
        Column("metric", "Metric", wide=True),
        Column("n", "n", True, wide=True),
        Column("baseline", "Baseline", True, wide=True),
        Column("steered", "Steered", True, wide=True),
        Column("change", "Change [95% interval]", True),
        Column("p", "p", True, wide=compared),
        *([Column("p_holm", "p (Holm)", True)] if compared else []),
    ]
    return [column for column in found if column.key not in ("model", "strength", "seed") or column.key in differing]


def leaderboard_data(rows: Sequence[Row], lower_is_better: Collection[str]) -> dict[str, Any]:
    """The leaderboard for JSON: by column what is shown, see `encoded`, and the numbers that it is sorted by."""
    columns = leaderboard_columns(rows)
    told = [table.cells(row) for row in rows]
    outcomes = [outcome(row, lower_is_better) for row in rows]
    names = ("model", "booster", "strength", "seed", "task", "metric", "n", "baseline", "steered", "p")
    shown: dict[str, list[str]] = {
        "outcome": [OUTCOMES[each] for each in outcomes],
        "change": [table.change(row) for row in rows],
        "p_holm": [cells["p (Holm)"] for cells in told],
        **{name: [cells[name] for cells in told] for name in names},
    }
    by: dict[str, list[float | None]] = {
        "outcome": [list(OUTCOMES).index(each) for each in outcomes],
        "change": [_number(improvement(row, lower_is_better)) for row in rows],
        "p": [_number(row["p_value"]) for row in rows],
        **{name: [_number(row[name]) for row in rows] for name in ("strength", "n", "baseline", "steered", "p_holm")},
    }
    return {
        "count": len(rows),
        "columns": [vars(column) for column in columns],
        "compared": any(each != "none" for each in outcomes),
        "outcomes": encoded(list(outcomes)),
        "shown": {name: encoded(texts) for name, texts in shown.items()},
        "by": by,
        "spans": _spans(rows, lower_is_better),
    }


def details_data(rows: Sequence[Row]) -> dict[str, Any]:
    """Every column of every row for JSON, see `encoded`, as far as it has a value anywhere."""
    return {
        name: encoded([_plain(row.get(name)) for row in rows])
        for name in (*table.COLUMNS, *table.DEVELOPMENT, "sweep")
        if any(row.get(name) not in (None, "") for row in rows)
    }


def encoded(texts: Sequence[str]) -> dict[str, Any]:
    """Texts with each of them once: `values` holds them, and `index` says which of them each row has.

    Where all have the same one, there is no index.
    """
    places: dict[str, int] = {}
    index = [places.setdefault(text, len(places)) for text in texts]
    return {"values": list(places), "index": index if len(places) > 1 else None}


def _spans(rows: Sequence[Row], lower_is_better: Collection[str]) -> list[list[int] | None]:
    """Where each row's interval lies in a picture 100 wide, better to the right and no change in the middle.

    Fractions share one scale; every other metric has its own.
    """
    scales: dict[str, float] = {}
    ends = []
    for row in rows:
        sign = -1 if row["metric"] in lower_is_better else 1
        low, high = sorted(sign * (row[end] if row[end] is not None else row["delta"]) for end in ("ci_low", "ci_high"))
        group = "" if is_fraction(row) else str(row["metric"])
        ends.append((group, low, sign * row["delta"], high))
        scales[group] = max(scales.get(group, 0.0), abs(low), abs(high))
    return [[round(50 + 48 * value / (scales[group] or 1.0)) for value in span] for group, *span in ends]


@dataclass(frozen=True)
class HeatMap:
    """A heat map as it is shown.

    Attributes:
        panel: Its model, lines and columns.
        lines: By line and column each cell, see `_heat_cell`; None where a booster was not evaluated.
        omitted: How many further boosters it leaves out.
    """

    panel: Panel
    lines: list[list[dict[str, Any] | None]]
    omitted: int


def heat_maps(rows: Sequence[Row], lower_is_better: Collection[str]) -> list[HeatMap]:
    """The heat map of each model, in which every cell knows the rows behind it; none of a single comparison."""
    corrected = [row for row in rows if row["p_holm"] is not None and "sweep" not in row]
    if len(corrected) < 2:
        return []
    behind: dict[tuple[str, ...], list[int]] = {}
    for place, row in enumerate(rows):
        if "sweep" not in row:
            behind.setdefault(heat_map.alike(row), []).append(place)
    found = []
    for panel in heat_map.panels(table.to_frame(corrected), lower_is_better):
        lines = []
        for line in range(min(len(panel.sources), MOST_LINES)):
            cells = [(panel.cells.get((line, place)), column.scale) for place, column in enumerate(panel.columns)]
            lines.append(
                [
                    _heat_cell(cell, scale, behind[heat_map.alike(cell.row)], lower_is_better) if cell else None
                    for cell, scale in cells
                ]
            )
        found.append(HeatMap(panel, lines, len(panel.sources) - len(lines)))
    return found


def _heat_cell(cell: Cell, scale: int, rows: list[int], lower_is_better: Collection[str]) -> dict[str, Any]:
    step = round(abs(cell.shade) * SHADES)
    side = "g" if cell.shade > 0 else "l"
    said = outcome(cell.row, lower_is_better)
    return {
        "text": f"{cell.change:+.{1 if scale == 100 else 3}f}",
        "shade": f"{side}{step}" if step else "zero",
        "outcome": said,
        "words": OUTCOMES[said],
        "change": table.change(cell.row),
        "rows": " ".join(map(str, rows)),
    }


def _number(value: Any) -> float | None:
    """A number to sort by; nine digits tell apart whatever a reader can."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.9g}")


def _plain(value: Any) -> str:
    """A value of a row as a reader sees it among its details."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else printable(value)


def for_script(value: Mapping[str, Any]) -> str:
    """JSON that can stand inside a `<script>`: no text in it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
