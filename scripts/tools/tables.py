"""Tables that are made row by row, and their place in a page. Knows CSV files and Markdown only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from aft_harness.files import write_atomically
from aft_harness.text import between


def updated(place: Path, rows: Iterable[Mapping[str, Any]], key: str, order: Sequence[Any]) -> pd.DataFrame:
    """Writes rows into a CSV file, in the place of those with the same key; returns the whole table.

    Args:
        place: The file; made with its folder where it is missing.
        rows: New ones.
        key: The column that tells rows apart.
        order: Of all keys; rows with others are dropped.
    """
    known: dict[Any, Mapping[Any, Any]] = {}
    if place.is_file():
        known = {row[key]: row for row in pd.read_csv(place).to_dict("records")}
    known |= {row[key]: row for row in rows}
    table = pd.DataFrame([known[each] for each in order if each in known])
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, table.to_csv(index=False).encode())
    return table


def put(page: Path, begin: str, end: str, lines: Sequence[str]) -> None:
    """Puts lines between two marks of a page."""
    write_atomically(page, between(page.read_text(encoding="utf-8"), begin, end, "\n".join(lines)).encode())
