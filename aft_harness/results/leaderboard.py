"""Leaderboards: tables of paired results as a CSV file that many runs and processes add to.

Knows which rows are about the same thing, and keeps the corrected p-values of the whole table right. Knows nothing of
where rows come from. A result on other documents, or with other prompts, is another row: a first look at a few of the
documents never takes the place of a whole evaluation, and both count in the correction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from filelock import FileLock

from aft_harness.errors import FileError, TaskError
from aft_harness.results import table
from aft_harness.results.statistics import holm
from aft_harness.results.table import COLUMNS, POOLED

_SUBJECT = (
    *("model", "revision", "dtype", "booster", "strength"),
    *("task", "task_version", "num_fewshot", "metric", "filter"),
)
_MADE = ("method", "objective", "trained_on", "trained_n", "layers", "booster_parameters")
_ASKED = ("documents_sha256", "prompts_sha256")
_NUMBERS = ("n", "baseline", "steered", "gained", "lost")


class Added(NamedTuple):
    """What adding rows to a leaderboard did.

    Attributes:
        added: Rows about what no row was about.
        replaced: Rows that took the place of others.
        kept: Rows of the table that `replace` would have replaced: about the same, but on other documents or pooling
            more seeds.
    """

    added: int
    replaced: int
    kept: int


def add(path: Path, rows: Iterable[Mapping[str, Any]], *, replace: bool = False) -> Added:
    """Adds rows to a leaderboard and corrects its p-values anew; other processes may add at the same time.

    A row that is there already changes nothing. One on the same documents with the same prompts but other numbers is
    replaced, unless it pools more seeds; so is one with the same numbers that tells neither documents nor prompts,
    which earlier versions did not record.

    Args:
        path: The CSV file, made if it does not exist.
        rows: From `runs.rows`.
        replace: The rows also take the place of those on other documents and of those that pool more seeds.

    Raises:
        TaskError: The file is no leaderboard.
        FileError: It cannot be read or written.
    """
    new = table.to_rows(table.to_frame(rows))
    with _locked(path):
        known = _by_key(path, table.to_rows(load(path)) if path.exists() else ())
        arriving = {_key(row) for row in new}
        present: dict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
        for key, row in known.items():
            if key not in arriving:
                present[_thing(row)].append(key)
        added = replaced = 0
        kept: set[tuple[str, ...]] = set()
        for row in new:
            key = _key(row)
            if key in known:
                if _same(known[key], row):
                    continue
                if not replace and (known[key]["seeds"] or 0) > (row["seeds"] or 0):
                    kept.add(key)
                    continue
                replaced += 1
            else:
                others = [other for other in present[_thing(row)] if other in known and _elsewhere(known[other], row)]
                gone = others if replace else [other for other in others if _unrecorded(known[other], row)]
                for other in gone:
                    del known[other]
                kept |= set(others) - set(gone)
                added, replaced = (added, replaced + 1) if gone else (added + 1, replaced)
            known[key] = row
        if added or replaced:
            table.to_csv(table.to_frame(corrected(known.values()))[list(COLUMNS)], path)
    return Added(added, replaced, len(kept))


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


def collected(tables: Iterable[Iterable[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of several tables, each result once: of two that are about the same, that of the later table.

    p-values stay corrected as each table had them, for results that need not be among these rows; where two tables have
    the same result, the larger p-value is kept.
    """
    known: dict[tuple[str, ...], dict[str, Any]] = {}
    for rows in tables:
        for row in rows:
            before = known.get(_key(row))
            kept = dict(row)
            if before is not None and _same(before, row):
                values = [each["p_holm"] for each in (before, row) if not pd.isna(each["p_holm"])]
                kept["p_holm"] = max(values, default=None)
            known[_key(row)] = kept
    return [known[key] for key in sorted(known)]


def merged(tables: Iterable[Iterable[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of several tables as one, with the p-values corrected anew over all of them.

    A booster is known by its sha256, whatever it is called. Of rows about the same the one that pools most seeds
    counts, and of several the last.

    Args:
        tables: Their rows. Those of a sweep may name it under `sweep`: its points stay together, whatever else is known
            of them.
    """
    known: dict[tuple[str, ...], dict[str, Any]] = {}
    for rows in tables:
        for row in rows:
            name = "" if row["booster_sha256"] else row["booster"]
            key = (*_key({**row, "booster": name}), str(row.get("sweep", "")))
            if key not in known or (known[key]["seeds"] or 0) <= (row["seeds"] or 0):
                known[key] = dict(row)
    return corrected(known.values())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock of a leaderboard, which lies beside it."""
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        if not path.parent.is_dir():  # the lock would make it
            raise FileError(f"{path}: the folder does not exist")
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # the latter from file systems without locks
        reason = getattr(error, "strerror", None) or error
        raise FileError(f"{path}: the folder cannot be written to or locked ({reason})") from None
    try:
        yield
    finally:
        lock.release()


def _by_key(path: Path, rows: Iterable[dict[str, Any]]) -> dict[tuple[str, ...], dict[str, Any]]:
    known: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        if not _same(known.setdefault(_key(row), row), row):
            what = f"{row['booster']} on {row['task']}, {row['metric']}"
            raise TaskError(f"{path}: two rows for the same result have different numbers ({what}); remove one of them")
    return known


def _subject(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[column]) for column in (*_SUBJECT, *_MADE, *_ASKED))


def _thing(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What a row is about, whatever the documents and prompts."""
    # One that pools seeds is about the same thing whatever the seeds.
    booster = "" if row["seed"] == POOLED else str(row["booster_sha256"])
    subject, made = ([str(row[column]) for column in columns] for columns in (_SUBJECT, _MADE))
    return (*subject, str(row["seed"]), booster, *made)


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What a row is about, by which it is known again."""
    return (*_thing(row), *(str(row[column]) for column in _ASKED))


def _same(known: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two rows say the same, but for when, and for the correction, which depends on the table."""
    return all(known[column] == new[column] for column in COLUMNS if column not in ("date", "p_holm"))


def _elsewhere(known: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two rows about the same are not known to be about the same documents."""
    return not known["documents_sha256"] or bool(known["documents_sha256"] != new["documents_sha256"])


def _unrecorded(known: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether the known row is the new one, written before documents and prompts were recorded."""
    return not any(known[column] for column in _ASKED) and all(known[column] == new[column] for column in _NUMBERS)
