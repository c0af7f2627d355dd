"""The one schema of tables of paired results, and how they are written, read and shown.

Knows columns and cells. Knows nothing of how a row was computed, nor which rows a file should hold.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from aft_harness.errors import FileError, ParseError, TaskError
from aft_harness.files import write_atomically
from aft_harness.results.statistics import Paired
from aft_harness.results.text import aligned, one_line

COLUMNS = (
    *("model", "revision", "architecture", "parameters", "booster", "booster_sha256", "method", "objective"),
    *("trained_on", "trained_n", "layers", "strength", "booster_parameters", "task", "task_version", "num_fewshot"),
    *("metric", "filter", "n", "baseline", "steered", "delta", "ci_low", "ci_high", "gained", "lost", "p_value"),
    *("p_holm", "min_detectable", "transfer", "seed", "seeds", "dtype", "device", "documents_sha256"),
    *("prompts_sha256", "lm_eval", "aft_harness", "date"),
)
"""Of every table, in this order; one row a model x booster x strength x task x metric x seed.

`p_holm` is empty in rows outside the family that is corrected: metrics that are not the task's first, strengths other
than 1, and single seeds where a row pools them. `seeds` is how many a row pools, `documents_sha256` and
`prompts_sha256` are `pairing.Asked`."""

LATER = ("seeds", "documents_sha256", "prompts_sha256")
"""Columns that files of earlier versions lack: empty when such a file is read."""

NEEDED = tuple(column for column in COLUMNS if column not in LATER)
"""Columns that the file of a leaderboard has."""

TOLD = ("booster", "task", "metric", "n", "baseline", "steered", "delta", "ci_low", "ci_high", "p_value")
"""Columns without which a row tells no paired result."""

DEVELOPMENT = ("development_n", "development_accuracy", "development_loss", "development_measure", "chosen")
"""Further columns of a sweep: how the variant did on development documents, and whether that chose it (0 or 1)."""

TEXT = (
    *("model", "revision", "architecture", "booster", "booster_sha256", "method", "objective", "trained_on", "layers"),
    *("task", "task_version", "metric", "filter", "seed", "dtype", "device", "documents_sha256"),
    *("prompts_sha256", "lm_eval", "aft_harness", "date", "development_measure"),
)
COUNTS = (
    *("parameters", "trained_n", "booster_parameters", "num_fewshot", "n", "gained", "lost", "transfer"),
    *("seeds", "development_n", "chosen"),
)
NUMBERS = tuple(column for column in (*COLUMNS, *DEVELOPMENT) if column not in (*TEXT, *COUNTS))

POOLED = "pooled"
"""The seed of a row that compares each document's mean over several seeds."""

SIGNIFICANT = 0.05
"""Level of the family-wise error rate at which a corrected p-value is marked."""

FORMS = ("table", "md", "csv", "json")

# The wide signs count as the others in some languages.
_FORMULA = re.compile("'*[=+\\-@\uff1d\uff0b\uff0d\uff20]")
_ESCAPED = re.compile("''*[=+\\-@\uff1d\uff0b\uff0d\uff20]")

# An underscore within a word is none of its markup; a colon or dot makes a link of what looks like an address.
_MARKUP = re.compile(r"[\\|`*\[\]<>&~$!]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.|@", re.IGNORECASE)
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


def to_frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a table of the schema: text, nullable integers and floats; the columns of a sweep where a row has them.

    Characters that could break a line or drive a terminal become spaces in text.

    Raises:
        TaskError: A value that its column cannot hold.
    """
    rows = list(rows)
    further = DEVELOPMENT if any(column in row for row in rows for column in DEVELOPMENT) else ()
    return _typed({column: [row.get(column) for row in rows] for column in (*COLUMNS, *further)})


def to_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as plain values; None where a value is missing."""
    return [
        {str(column): None if pd.isna(value) else value for column, value in row.items()}
        for row in frame.to_dict("records")
    ]


def to_csv(frame: pd.DataFrame, path: Path) -> None:
    """Writes a table as a CSV file, atomically; numbers keep every digit.

    Raises:
        FileError: The folder does not exist or cannot be written.
    """
    write_atomically(path, _csv(frame).encode())


def read(path: Path, needed: Iterable[str] = NEEDED) -> pd.DataFrame:
    """A CSV file of the schema as a table, as `to_frame` makes it.

    Args:
        path: The file.
        needed: Columns that it must have; others may be missing, and are then empty.

    Raises:
        FileError: It cannot be read.
        TaskError: It is no such table.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head, *lines = (line for line in csv.reader(file, strict=True) if line)
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, csv.Error) as error:  # ValueError: nothing in it, or no UTF-8 text
        raise TaskError(f"{path}: cannot be read as a table ({one_line(error)})") from None
    if missing := [column for column in needed if column not in head]:
        raise TaskError(f"{path}: not a leaderboard (column {missing[0]} is missing)")
    if len(set(head)) < len(head):
        raise TaskError(f"{path}: not a leaderboard (duplicate column)")
    for number, line in enumerate(lines, start=1):
        if len(line) != len(head):
            raise TaskError(f"{path}: row {number} has {len(line)} cells; expected {len(head)}")
    cells = dict(zip(head, zip(*lines, strict=True), strict=True)) if lines else {}
    further = DEVELOPMENT if any(column in head for column in DEVELOPMENT) else ()
    columns = [*COLUMNS, *further]
    found = {column: cells.get(column, [""] * len(lines)) for column in columns}
    for column in found:
        if column in TEXT:
            found[column] = [cell[1:] if _ESCAPED.match(cell) else cell for cell in found[column]]
    try:
        return _typed(found)
    except TaskError as error:
        raise TaskError(f"{path}: {error}") from None


def render(frame: pd.DataFrame, form: str = "table") -> str:
    """A table as text that ends without a line break.

    Args:
        frame: Of the schema.
        form: `table`, aligned for a terminal, without model, strength and seed where all rows have the same; `md`, the
            same cells as Markdown; `csv` and `json`, all columns with every digit.

    Raises:
        ParseError: Another form.
    """
    if form == "csv":
        return _csv(frame).removesuffix("\n")
    if form == "json":
        rows = [{column: _finite(value) for column, value in row.items()} for row in to_rows(frame)]
        return json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False)
    if form not in FORMS:
        raise ParseError(f"unknown table format {form!r}; expected one of {', '.join(FORMS)}")
    shown_rows = [cells(row) for row in to_rows(frame)]
    columns = list(cells(dict.fromkeys(frame.columns)))
    if form == "md":
        lines = [[_markdown(column, row[column]) for column in columns] for row in shown_rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *lines))
    shown = [name for name in columns if name not in _CONTEXT or len({row[name] for row in shown_rows}) > 1]
    return aligned([shown, *([row[name] for name in shown] for row in shown_rows)], [name in _LEFT for name in shown])


def sentence(paired: Paired) -> str:
    """A paired result in one line: n, both means, the change with its interval, and the test."""
    fraction = paired.gained is not None
    test = f"gained {paired.gained}, lost {paired.lost}, exact McNemar" if fraction else "sign-flip"
    return (
        f"n = {paired.n}, {_mean(paired.baseline, fraction)} -> {_mean(paired.steered, fraction)}, "
        f"{_change(paired.delta, paired.ci_low, paired.ci_high, fraction)}, {test} p = {paired.p_value:.2g}"
    )


def is_fraction(row: Mapping[str, Any]) -> bool:
    """Whether a row's metric is a fraction of documents, which is shown as a percentage, and its change in points."""
    return str(row["metric"]).startswith(("acc", "exact_match")) or not pd.isna(row["gained"])


def change(row: Mapping[str, Any]) -> str:
    """A row's change with its interval, in points for a fraction; nothing where there is none."""
    if row["delta"] is None:
        return ""
    return _change(row["delta"], row["ci_low"], row["ci_high"], is_fraction(row))


def amount(row: Mapping[str, Any], value: float) -> str:
    """A size of a change on a row's metric, without a sign, in points for a fraction."""
    return f"{100 * value:.1f} points" if is_fraction(row) else f"{value:.3g}"


_CONTEXT = ("model", "strength", "seed")
"""Columns that say nothing in a terminal where all rows agree."""

_LEFT = ("model", "booster", "task", "metric", "measure", "chosen")
"""Columns of text; others are aligned to the right."""

_FROM_OUTSIDE = (*_LEFT, "seed")
"""Columns whose cells hold what a file or a user says; others are made of numbers here."""


def cells(row: Mapping[str, Any]) -> dict[str, str]:
    """What a reader sees of a row, by heading; all empty for a row of None."""
    fraction = row["metric"] is not None and is_fraction(row)
    filter_name = "" if row["filter"] in (None, "", "none") else f",{row['filter']}"
    star = " *" if row["p_holm"] is not None and row["p_holm"] < SIGNIFICANT else ""
    changed = change(row)
    found = {
        "model": _text(row["model"]),
        "booster": _text(row["booster"]),
        "strength": _number(row["strength"], "g"),
        "seed": _text(row["seed"]),
    }
    if "chosen" in row:
        found |= {
            "development n": _number(row["development_n"], "d"),
            "accuracy": _number(row["development_accuracy"], ".1%"),
            "loss": _number(row["development_loss"], ".4f"),
            "measure": _text(row["development_measure"]),
            "chosen": "yes" if row["chosen"] else "",
        }
    return found | {
        "task": _text(row["task"]),
        "metric": _text(row["metric"]) + _text(filter_name),
        "n": _number(row["n"], "d"),
        "baseline": _mean(row["baseline"], fraction),
        "steered": _mean(row["steered"], fraction),
        "change [95% interval]": changed and changed + star,
        "p": _number(row["p_value"], ".2g"),
        "p (Holm)": _number(row["p_holm"], ".2g"),
    }


def markdown(text: str) -> str:
    """Text from outside as Markdown, in which it is neither markup, HTML nor a link."""
    return _MARKUP.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), text)


def _markdown(column: str, cell: str) -> str:
    return markdown(cell) if column in _FROM_OUTSIDE else cell


def _mean(value: float | None, fraction: bool) -> str:
    return _number(value, ".1%" if fraction else ".4g")


def _change(delta: float, low: float | None, high: float | None, fraction: bool) -> str:
    scale, form, unit = (100, "+.1f", " points") if fraction else (1, "+.4g", "")
    unknown = low is None or high is None or math.isnan(low) or math.isnan(high)
    interval = "unknown" if unknown else ", ".join(format(scale * end, form) for end in (low, high) if end is not None)
    return f"{scale * delta:{form}}{unit} [{interval}]"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _text(value: object) -> str:
    """A value from outside as text of one line; nothing where it is missing."""
    return "" if value is None or value is pd.NA or value != value else one_line(value)


def _finite(value: Any) -> Any:
    """The value for JSON, which has no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text_columns(frame: pd.DataFrame) -> list[str]:
    return [column for column in frame.columns if column in TEXT]


def _typed(cells: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """Columns of cells as a table in which every column has its type."""
    columns: dict[str, Any] = {}
    for column, values in cells.items():
        if column in TEXT:
            columns[column] = pd.Series([_text(cell) for cell in values], dtype=object)
            continue
        try:
            # By way of Python's float, which reads back the very number that was written.
            numbers = [math.nan if cell is None or cell is pd.NA or cell == "" else float(cell) for cell in values]
        except (TypeError, ValueError, OverflowError) as error:
            raise TaskError(f"column {column}: {one_line(error)}") from None
        if column not in COUNTS:
            columns[column] = np.array(numbers, dtype="float64")
            continue
        for number in numbers:
            if not (math.isnan(number) or (number.is_integer() and abs(number) < 2**53)):
                raise TaskError(f"column {column}: {number} is not a whole number below 2^53")
        columns[column] = pd.array([pd.NA if math.isnan(number) else int(number) for number in numbers], dtype="Int64")
    return pd.DataFrame(columns)


def _csv(frame: pd.DataFrame) -> str:
    """The table as CSV text, in which a spreadsheet takes no cell of text for a formula; `read` undoes that."""
    escaped = {
        column: [f"'{cell}" if _FORMULA.match(cell) else cell for cell in map(_text, frame[column])]
        for column in _text_columns(frame)
    }
    return frame.assign(**escaped).to_csv(index=False, lineterminator="\n")
