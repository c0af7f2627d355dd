"""What a report is made of: tables, training curves, boosters and runs, found in files and folders by their content.

Knows what the commands write and where. Knows nothing of how it is shown. A booster's file is read as the library reads
every booster; nothing is ever unpickled. Names of files are kept, paths are not.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from aft_harness.errors import BoosterError, FileError, TaskError
from aft_harness.files import exists
from aft_harness.results import leaderboard, table
from aft_harness.results.pairing import files_below
from aft_harness.text import reason

if TYPE_CHECKING:
    from aft_harness.boosters.booster import Booster
    from aft_harness.results.runs import Run

CURVE = ("step", "epoch", "loss")
"""Columns of a file of training curves; there may be `development_loss`."""

OF_STUDY = ("answers.sqlite", "study.json")
"""One of them lies in the folder of a transfer study: the first where it ran in one process, the second on workers."""


@dataclass(frozen=True)
class Curve:
    """The losses of a training.

    Attributes:
        name: Name of its file.
        frame: See `training.result.TrainingResult`.
    """

    name: str
    frame: pd.DataFrame


@dataclass(frozen=True)
class BoosterFile:
    """A booster that was found.

    Attributes:
        name: Name of its file.
        booster: What is in it.
        of_study: Whether a transfer study made it.
    """

    name: str
    booster: Booster
    of_study: bool


@dataclass
class Material:
    """What was found.

    Attributes:
        rows: Of all tables, corrected over all of them. Those of a sweep have its further columns, see
            `table.DEVELOPMENT`, and under `sweep` the name of its file.
        curves: Of trainings.
        boosters: Each once.
        runs: Of lm-eval, those of one folder together.
        notes: What was left out, and why.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    boosters: list[BoosterFile] = field(default_factory=list)
    runs: list[list[Run]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Tables:
    """Rows by where they come from: files of tables, folders of studies, and runs of lm-eval; and what was read."""

    files: list[list[dict[str, Any]]] = field(default_factory=list)
    studies: list[list[dict[str, Any]]] = field(default_factory=list)
    runs: list[list[dict[str, Any]]] = field(default_factory=list)
    hits: int = 0
    seen: set[Path] = field(default_factory=set)

    def take(self, path: Path) -> bool:
        """Whether a file or folder is to be read: not if it was already, as part of another source."""
        self.hits += 1
        fresh = path.resolve() not in self.seen
        self.seen.add(path.resolve())
        return fresh


def read(sources: Sequence[Path]) -> Material:
    """Reads files and folders.

    Args:
        sources: CSV files of results or training curves, booster files, and folders that commands wrote into.

    Raises:
        FileError: One of them cannot be read.
        TaskError: One of them holds nothing that can be reported, or something malformed.
    """
    found = Material()
    tables = _Tables()
    for source in sources:
        if not exists(source):
            raise FileError(f"{source}: no such file or folder")
        before = tables.hits
        if source.is_dir():
            _read_folder(source, found, tables)
        else:
            _read_file(source, found, tables)
        if tables.hits == before:
            raise TaskError(f"{source}: no leaderboard, sweep, training curves, booster or lm_eval results in it")
    # A study's own files also hold what an earlier plan asked: its table says what counts. Tables come last, because
    # they call boosters by the names that they were given.
    named = any("sweep" not in row for rows in tables.files for row in rows)
    found.rows = leaderboard.merged([*([] if named else tables.studies), *tables.runs, *tables.files])
    if not (found.rows or found.curves or found.boosters):
        raise TaskError(f"{', '.join(map(str, sources))}: there are no results to report")
    return found


def _read_file(path: Path, found: Material, tables: _Tables) -> None:
    """Reads a file that is named, and refuses one of another kind."""
    if not tables.take(path):
        return
    if path.suffix == ".safetensors":
        _add_booster(path, found)
    elif set(CURVE) <= set(_head(path)):
        found.curves.append(_curve(path))
    else:
        tables.files.append(_table(path))


def _read_folder(folder: Path, found: Material, tables: _Tables) -> None:
    """Reads what is below a folder; other files may be there, too."""
    for path in _visible(folder, "*.csv"):
        try:
            head = set(_head(path))
        except TaskError:
            continue
        if head >= set(CURVE) and tables.take(path):
            found.curves.append(_curve(path))
        elif head >= set(table.TOLD) and tables.take(path):
            tables.files.append(_table(path))
    for path in _visible(folder, "*.safetensors"):
        try:
            if tables.take(path):
                _add_booster(path, found)
        except BoosterError as error:  # the weights of a model, say
            tables.hits -= 1
            found.notes.append(f"left out: {reason(error).replace(str(path), path.name)}")
    studies = {path.parent: path for name in OF_STUDY for path in _visible(folder, name)}
    for place, path in sorted(studies.items()):
        rows = [row for file in _visible(place / "results", "*.json") for row in _study_rows(file)]
        if rows and tables.take(path):
            tables.studies.append(rows)
    if any(True for _ in _visible(folder, "results_*.json")) and tables.take(folder):
        from aft_harness.results.runs import read_runs
        from aft_harness.results.runs import rows as rows_of

        runs = read_runs(folder)
        found.runs.append(runs)
        if made := rows_of(runs):
            tables.runs.append(table.to_rows(table.to_frame(made)))


def _visible(folder: Path, pattern: str) -> Iterator[Path]:
    """The files below a folder that match, in order, without those in hidden folders."""
    for path in sorted(files_below(folder, pattern)):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _head(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return next(csv.reader(file), [])
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, csv.Error) as error:
        raise TaskError(f"{path}: cannot be read as a table ({reason(error)})") from None


def _table(path: Path) -> list[dict[str, Any]]:
    rows = table.to_rows(table.read(path, table.TOLD))
    if any(row.get("chosen") == 1 for row in rows):
        stem = path.name.removesuffix(".csv")
        name = path.resolve().parent.name if stem == "sweep" else stem  # a sweep's folder is what users name
        return [{**row, "sweep": name} for row in rows]
    return [{column: row[column] for column in table.COLUMNS} for row in rows]


def _curve(path: Path) -> Curve:
    try:
        frame = pd.read_csv(path, encoding="utf-8-sig")
        columns = [name for name in (*CURVE, "development_loss") if name in frame.columns]
        return Curve(path.name.removesuffix(".csv"), frame[columns].apply(pd.to_numeric).astype(float))
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, TypeError, KeyError) as error:
        raise TaskError(f"{path}: not a table of training losses ({reason(error)})") from None


def _study_rows(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_bytes())
        rows = [dict(row) for row in content]
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise TaskError(f"{path}: not the results of a study ({reason(error)})") from None
    try:
        return table.to_rows(table.to_frame(rows))
    except TaskError as error:
        raise TaskError(f"{path}: {error}") from None


def _add_booster(path: Path, found: Material) -> None:
    from aft_harness.boosters import file_format

    booster = file_format.load(path)
    if all(booster.sha256 != other.booster.sha256 for other in found.boosters):
        of_study = any(exists(path.parent.parent / name) for name in OF_STUDY)
        found.boosters.append(BoosterFile(path.name.removesuffix(".safetensors"), booster, of_study))
