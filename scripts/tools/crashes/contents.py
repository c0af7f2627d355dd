"""What commands have written into a folder, in a form in which two runs are compared: without dates and durations.

Knows the files of the package by their names, and reads each of them whole. Knows nothing of processes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import shutil
import sqlite3
import tempfile
from collections import defaultdict
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from aft_harness.boosters import file_format
from aft_harness.errors import AftError

_MOMENT = re.compile(rb"\d{4}-\d\d-\d\d(T\d\d[:-]\d\d[:-]\d\d(\.\d+)?(\+00:00)?)?")
_VOLATILE = ("date", "start_time", "end_time", "total_evaluation_time_seconds")
"""What differs in each of lm-eval's results files."""

_PARTIAL = ("p_holm",)
"""Columns of a leaderboard that further rows change."""

HUB_CACHE = "cache"
"""Folder of huggingface_hub's files, which are its business."""

_TEMPORARY = (".tmp", ".lock", ".partial", "-journal", "-wal", "-shm")


class Broken(Exception):
    """A file that cannot be read; the message has its name and the reason."""


@dataclass
class Contents:
    """What is in a folder.

    Attributes:
        files: The content of each file, by its path without dates: of several runs there may be several.
        leftovers: Temporary files, locks and states of trainings.
        sizes: Of all files, in bytes, but for those that are links.
    """

    files: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    leftovers: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def differences(self, other: Contents) -> list[str]:
        """In which files this differs from another run."""
        missing = [f"{name} is missing" for name in other.files if name not in self.files]
        further = [f"{name} is not expected" for name in self.files if name not in other.files]
        return missing + further + [f"{name} differs" for name in self.files if self._differs(name, other)]

    def _differs(self, name: str, other: Contents) -> bool:
        expected = other.files.get(name)
        return expected is not None and any(each != expected[0] for each in self.files[name])

    def halves(self, before: Contents, after: Contents, growing: Collection[str], whole: Collection[str]) -> list[str]:
        """What is neither as it was before a run nor as it is after it.

        Args:
            before: What there was before.
            after: What a run that nothing disturbed leaves behind.
            growing: Names of files that grow entry by entry: those of a run that was killed must be among those of one
                that was not.
            whole: Folders that are there with all their files, or not at all.
        """
        found = []
        for name, values in self.files.items():
            known = [*before.files.get(name, ()), *after.files.get(name, ())]
            if not known:
                found.append(f"{name} is not expected")
            elif Path(name).name in growing:
                found += [f"{name} has what no other run has" for each in values if not _among(each, known[-1])]
            else:
                found += [f"{name} differs" for each in values if each not in known]
        for folder in whole:
            inside = [name for name in after.files if name.startswith(f"{folder}/")]
            there = [name for name in inside if name in self.files]
            if there and len(there) < len(inside):
                found.append(f"{folder} has {len(there)} of {len(inside)} files")
        return found


def is_temporary(name: Path) -> bool:
    """Whether a file, by its path in a folder, is none that users look for: a lock, say, or one being written."""
    hidden = any(part.startswith(".") or part.endswith(_TEMPORARY) for part in name.parts)
    return hidden or name.parts[:1] == (HUB_CACHE,)


def read(folder: Path) -> Contents:
    """Reads everything below a folder.

    Raises:
        Broken: A file under its final name cannot be read.
    """
    found = Contents()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts[0] == HUB_CACHE or path.is_dir():
            continue
        if (described := path.lstat()).st_nlink == 1:
            found.sizes.append(described.st_size)
        if is_temporary(name):
            found.leftovers.append(str(_outermost(name)))
            continue
        try:
            value = _value(path)
        except (AftError, OSError, ValueError, SafetensorError, sqlite3.Error, csv.Error) as error:
            raise Broken(f"{name} cannot be read ({' '.join(str(error).split())[:120]})") from None
        if ".resume" in name.name:
            found.leftovers.append(str(name))
        else:
            found.files[_MOMENT.sub(b"DATE", str(name).encode()).decode()].append(value)
    return found


def _outermost(name: Path) -> Path:
    """The temporary folder that a file is in, or the file."""
    return next(place for place in (*reversed(name.parents), name) if is_temporary(place))


def _value(path: Path) -> Any:
    """What is compared of a file."""
    if path.suffix == ".sqlite":
        return _entries(path)
    if path.suffix == ".csv":
        return _rows(path.read_text(encoding="utf-8"))
    if path.name.startswith("results_") and path.suffix == ".json":
        return {name: value for name, value in json.loads(path.read_bytes()).items() if name not in _VOLATILE}
    if path.suffix == ".safetensors" or ".resume" in path.name:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
        if path.suffix == ".safetensors" and file_format.METADATA_KEY in metadata:
            file_format.load(path)
    return hashlib.sha256(_MOMENT.sub(b"DATE", path.read_bytes())).hexdigest()


def _rows(text: str) -> list[Mapping[str, str]]:
    """The rows of a table without their dates."""
    head, *lines = csv.reader(io.StringIO(text), strict=True)
    if not text.endswith("\n") or any(len(line) != len(head) for line in lines):
        raise ValueError("a row is cut off")
    rows = [dict(zip(head, line, strict=True)) for line in lines]
    return [{name: value for name, value in row.items() if name != "date"} for row in rows]


def _entries(path: Path) -> frozenset[Any]:
    """The entries of a database, which is read as the next process would find it."""
    with tempfile.TemporaryDirectory() as scratch:
        for each in path.parent.glob(f"{path.name}*"):
            shutil.copy(each, scratch)
        with closing(sqlite3.connect(Path(scratch) / path.name)) as database:
            if (verdict := database.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
                raise ValueError(verdict)
            tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return frozenset((name, *row) for name in tables for row in database.execute(f"SELECT * FROM {name}"))


def _among(value: Any, known: Any) -> bool:
    """Whether all entries of a file are among those of another one."""
    if isinstance(value, frozenset):
        return value <= known
    kept = [{name: cell for name, cell in row.items() if name not in _PARTIAL} for row in known]
    return all({name: cell for name, cell in row.items() if name not in _PARTIAL} in kept for row in value)
