"""Leaderboards: tables of paired results as a CSV file that many runs and processes add to.

Knows which rows are about the same thing, and keeps the corrected p-values of the whole table right. Knows nothing of
where rows come from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from aft_harness.errors import FileError
from aft_harness.results import table
from aft_harness.results.statistics import holm
from aft_harness.results.table import COLUMNS, POOLED

_SUBJECT = (
    *("model", "revision", "dtype", "booster", "strength"),
    *("task", "task_version", "num_fewshot", "metric", "filter"),
)


def add(path: Path, rows: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """Adds rows to a leaderboard and corrects its p-values anew; other processes may add at the same time.

    A row that is there already changes nothing; one about the same thing with other numbers is replaced.

    Args:
        path: The CSV file, made if it does not exist.
        rows: From `runs.rows`.

    Returns:
        How many rows were added, and how many replaced.

    Raises:
        TaskError: The file is no leaderboard.
        FileError: It cannot be read or written.
    """
    new = table.to_rows(table.to_frame(rows))
    with _locked(path):
        known = {_key(row): row for row in (table.to_rows(load(path)) if path.exists() else ())}
        added = replaced = 0
        for row in new:
            key = _key(row)
            if key not in known:
                added += 1
            elif not _same(known[key], row):
                replaced += 1
            else:
                continue
            known[key] = row
        if added or replaced:
            table.to_csv(table.to_frame(corrected(known.values()))[list(COLUMNS)], path)
    return added, replaced


def load(path: Path) -> pd.DataFrame:
    """A leaderboard as a table; what is empty is missing.

    Raises:
        FileError: The file cannot be read.
        TaskError: It is no leaderboard.
    """
    return table.read(path)[list(COLUMNS)]


def corrected(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows in the order of a leaderboard, with the corrected p-values of every family in `p_holm`.

    A model's family holds the rows with a `p_holm`: each task's first metric at strength 1. Where a row pools seeds,
    single seeds leave it.

    Args:
        rows: All of a table: a family is what is corrected for.
    """
    ordered = [dict(row) for row in sorted(rows, key=_key)]
    pooled = {_subject(row) for row in ordered if row["seed"] == POOLED}
    families: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in ordered:
        if row["seed"] != POOLED and _subject(row) in pooled:
            row["p_holm"] = None
        if not pd.isna(row["p_holm"]):
            families[row["revision"]].append(row)
    for family in families.values():
        for row, p_value in zip(family, holm([row["p_value"] for row in family]), strict=True):
            row["p_holm"] = p_value
    return ordered


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock of a leaderboard, which lies beside it."""
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        if not path.parent.is_dir():  # the lock would make it
            raise FileError(f"{path}: its folder does not exist")
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # the latter from file systems without locks
        reason = getattr(error, "strerror", None) or error
        raise FileError(f"{path}: its folder cannot be written to or locked ({reason})") from None
    try:
        yield
    finally:
        lock.release()


def _subject(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[column]) for column in _SUBJECT)


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What a row is about. One that pools seeds is about the same thing whatever the seeds."""
    booster = "" if row["seed"] == POOLED else str(row["booster_sha256"])
    return (*_subject(row), str(row["seed"]), booster)


def _same(known: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two rows say the same, but for when, and for the correction, which depends on the table."""
    return all(known[column] == new[column] for column in COLUMNS if column not in ("date", "p_holm"))
