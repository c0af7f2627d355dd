"""Where pairs are read from: JSON lines, CSV and Parquet files, data sets of the hub, or a program's own list.

Knows formats of files and names of data sets. What makes a row a pair is `pairs.py`'s work.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aft_harness.errors import FileError, ParseError, TaskError
from aft_harness.files import check_regular, exists
from aft_harness.harness.pairs import Pair, pairs_of, version
from aft_harness.harness.selection import PairSelection
from aft_harness.slices import SplitSlice
from aft_harness.text import reason

SUFFIXES = (".jsonl", ".csv", ".parquet")

_HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<split>.+))?")
_LARGEST_CELL = 2**24
"""Characters of one cell of a CSV file."""


Pairs = str | Path | PairSelection | Sequence[Mapping[str, Any]] | Sequence[str | Path | PairSelection]
"""Pairs of texts: a file, a data set of the hub, a selection, a list of these, or the pairs themselves as mappings."""


@dataclass(frozen=True)
class PairSet:
    """The pairs of one source.

    Attributes:
        name: What tables and provenance call them: a name, never a path.
        rows: Which rows they are, as a slice.
        pairs: All of one kind.
    """

    name: str
    rows: str
    pairs: list[Pair] = field(repr=False)

    @property
    def version(self) -> str:
        """Identity of their content."""
        return version(self.pairs)


def name_of(source: str | Path | Sequence[Mapping[str, Any]]) -> str:
    """What the pairs of a source are called, before it is read: a file by its stem, a data set by its last part."""
    if not isinstance(source, str | Path):
        return "pairs"
    text = str(source)
    if not _is_file(text) and (hub := _HUB.fullmatch(text)):
        text = hub["name"]
        return text.rpartition("/")[2]
    return re.sub(r"[^\w.-]+", "_", Path(text).stem) or "pairs"


def read_all(pairs: Pairs, limit: int | None = None, dev_docs: int = 0) -> list[tuple[PairSelection, PairSet]]:
    """What is selected, each with its pairs.

    Args:
        pairs: See `Pairs`.
        limit: Maximum number of training pairs of what is no `PairSelection`.
        dev_docs: Number of its development pairs.

    Raises:
        AftError: See `read`.
    """
    listed: Sequence[Any] = [pairs] if isinstance(pairs, str | Path | PairSelection) else pairs
    if listed and not isinstance(listed[0], str | Path | PairSelection):
        listed = [PairSelection(listed, limit=limit, dev_docs=dev_docs)]
    selections = [
        item if isinstance(item, PairSelection) else PairSelection(item, limit=limit, dev_docs=dev_docs)
        for item in listed
    ]
    return [(selection, read(selection.source)) for selection in selections]


def refuse_same_names(names: Sequence[str]) -> None:
    """Refuses two tasks or sets of pairs of one name: results are told apart by it.

    Raises:
        TaskError: With the name.
    """
    for place, name in enumerate(names):
        if name in names[:place]:
            raise TaskError(f"{name}: pairs have the name of a task or of other pairs; rename the file")


def read(source: str | Path | Sequence[Mapping[str, Any]]) -> PairSet:
    """Reads a file, a data set of the hub as `owner/name` or `owner/name:SPLIT[A:B]`, or a list of mappings.

    Raises:
        FileError: A file that cannot be read.
        ParseError: Neither a file of a known kind nor the name of a data set.
        TaskError: A row that is no pair, named by file and line.
    """
    if not isinstance(source, str | Path):
        pairs = pairs_of(((f"pairs: number {number}", row) for number, row in enumerate(source, start=1)), "pairs")
        return PairSet("pairs", f"pairs[0:{len(pairs)}]", pairs)
    text = str(source)
    if not _is_file(text) and (hub := _HUB.fullmatch(text)):
        return _from_hub(hub["name"], hub["split"], name_of(text))
    path = Path(text)
    try:
        check_regular(path)
    except FileError as error:
        raise FileError(f"{path}: {error}") from None
    if path.suffix not in _READERS:
        raise ParseError(f"{path}: unknown kind of file; expected {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    try:
        pairs = pairs_of(_READERS[path.suffix](path), str(path))
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or reason(error)})") from None
    return PairSet(name_of(text), f"pairs[0:{len(pairs)}]", pairs)


def _is_file(text: str) -> bool:
    """Whether a reference means a file: one that is there, or that could not be anything else."""
    return exists(text) or text.endswith(SUFFIXES) or text.count("/") != 1 or text.startswith((".", "/", "~"))


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    # Text keeps U+2028 and U+0085 raw: only "\n" ends a line here.
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}: line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                raise TaskError(f"{place}: not JSON ({reason(error)}); expected one object a line") from None
            if isinstance(row, list):
                raise TaskError(f"{place}: a JSON list; expected one object a line")
            yield place, row


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        # A limit of the module's own would refuse long texts; it has no other way to set one.
        before = csv.field_size_limit(_LARGEST_CELL)
        reader = csv.reader(file, strict=True)
        start = 1
        try:
            head = next(reader, [])
            if len(set(head)) < len(head):
                raise TaskError(f"{path}: line 1: two columns have the same name")
            start = reader.line_num + 1
            for cells in reader:
                place, start = f"{path}: line {start}", reader.line_num + 1
                if not cells:
                    continue
                if len(cells) != len(head):
                    raise TaskError(f"{place}: {len(cells)} cells; the header has {len(head)}")
                yield place, dict(zip(head, cells, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise TaskError(f"{path}: line {start}: not CSV ({reason(error)})") from None
        finally:
            csv.field_size_limit(before)


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except (ArrowException, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: not a Parquet file ({reason(error)})") from None


_READERS = dict(zip(SUFFIXES, (_json_lines, _csv, _parquet), strict=True))


def _from_hub(dataset: str, split: str | None, name: str) -> PairSet:
    import datasets

    asked = SplitSlice.parse(split or "train")
    try:
        rows = datasets.load_dataset(dataset, split=asked.split)
    except Exception as error:  # whatever the hub, the network or the data set's own files raise
        raise TaskError(
            f"data set {dataset}: split {asked.split} cannot be loaded ({type(error).__name__}: {reason(error)})"
        ) from None
    stop = len(rows) if asked.rows.stop is None else min(asked.rows.stop, len(rows))
    kept = range(min(asked.rows.start, stop), stop)
    placed = ((f"{dataset}: {asked.split} row {index}", rows[index]) for index in kept)
    pairs = pairs_of(placed, f"{dataset}: {asked.split}[{asked.rows}]")
    return PairSet(name, f"{asked.split}[{kept.start}:{kept.stop}]", pairs)
