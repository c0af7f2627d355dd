"""Reading pairs from files, from the hub and from a list; what cannot be read is one line with file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from aft_harness.errors import AftError, FileError, ParseError, TaskError
from aft_harness.harness.pair_sources import name_of, read, read_all, refuse_same_names
from aft_harness.harness.selection import PairSelection

ROWS = [{"prompt": f'Say "{word}",\nplease:', "chosen": f" {word}", "rejected": " no"} for word in ("one", "zwölf")]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """The same pairs in every kind of file."""
    paths = {suffix: tmp_path / f"my pairs.{suffix}" for suffix in ("jsonl", "csv", "parquet")}
    # U+2028 ends no line of JSON lines.
    paths["jsonl"].write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n")
    pd.DataFrame(ROWS).to_csv(paths["csv"], index=False)
    pd.DataFrame(ROWS).to_parquet(paths["parquet"])
    return paths


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_every_kind_of_file_gives_the_same_pairs(suffix: str, files: dict[str, Path]) -> None:
    found = read(files[suffix])
    assert [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in found.pairs] == ROWS
    assert (found.name, found.rows) == ("my_pairs", "pairs[0:2]") and found.version == read(ROWS).version
    places = {"jsonl": ["line 1", "line 2"], "csv": ["line 2", "line 4"], "parquet": ["row 1", "row 2"]}
    assert [pair.place for pair in found.pairs] == [f"{files[suffix]}: {place}" for place in places[suffix]]


def test_chat_messages_come_from_parquet_and_marks_at_the_start_of_a_file_do_not_matter(tmp_path: Path) -> None:
    row = {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}
    pd.DataFrame([row]).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("\ufeff" + json.dumps(row), encoding="utf-8")
    assert read(tmp_path / "a.parquet").pairs[0].texts == read(tmp_path / "a.jsonl").pairs[0].texts == ("b",)


def test_pairs_of_a_program_are_numbered() -> None:
    found = read([*ROWS])
    assert (found.name, found.rows, found.pairs[1].place) == ("pairs", "pairs[0:2]", "pairs: number 2")
    with pytest.raises(TaskError, match="pairs: number 1: chosen is empty"):
        read([{"prompt": "a", "chosen": "", "rejected": "b"}])


def test_data_sets_of_the_hub_are_read_by_split_and_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def load(name: str, split: str) -> Any:
        asked.append((name, split))
        if split == "nothing":
            raise ValueError("Unknown split")
        return datasets.Dataset.from_list([*ROWS, {**ROWS[0], "chosen": ""}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = read("owner/some.set:train_prefs[1:2]")
    assert (found.name, found.rows) == ("some.set", "train_prefs[1:2]") and found.pairs[0].chosen == " zwölf"
    assert len(read("owner/some.set:test[:2]").pairs) == 2
    assert asked == [("owner/some.set", "train_prefs"), ("owner/some.set", "test")]
    with pytest.raises(TaskError, match=r"owner/some.set: train row 2: chosen is empty"):
        read("owner/some.set")
    with pytest.raises(TaskError, match=r"data set owner/some.set: split nothing cannot be loaded .*Unknown split"):
        read("owner/some.set:nothing")
    with pytest.raises(TaskError, match=r"owner/some.set: train\[7:9\]: no pairs"):
        read("owner/some.set:train[7:9]")
    with pytest.raises(ParseError, match="does not name rows of a split"):
        read("owner/some.set:train[")


def test_names_are_known_before_anything_is_read() -> None:
    names = {"a/b c.jsonl": "b_c", "x.csv": "x", "owner/set": "set", "owner/set:test[0:3]": "set", "./d": "d"}
    assert {source: name_of(source) for source in names} == names and name_of([]) == "pairs"


BAD: dict[str, tuple[str, bytes | None, type[AftError], str]] = {
    "missing": ("a.jsonl", None, FileError, "a.jsonl: no such file"),
    "not a file": (".", None, FileError, "no such file|not a regular file"),
    "suffix": ("a.txt", b"{}", ParseError, "a.txt: unknown kind of file; expected .jsonl, .csv or .parquet"),
    "not JSON": ("a.jsonl", b'{"prompt": "a", "completion": "b"}\nprompt,b', TaskError, "a.jsonl: line 2: not JSON"),
    "one list": ("a.jsonl", b'[{"prompt": "a"}]', TaskError, "line 1: a JSON list; expected one object a line"),
    "pretty JSON": ("a.jsonl", b'{\n "prompt": "a"}', TaskError, "a.jsonl: line 1: not JSON"),
    "encoding": ("a.jsonl", b'{"prompt": "\xff"}', TaskError, "a.jsonl: line 1: not JSON"),
    "surrogate": (
        "a.jsonl",
        b'{"prompt": "\\ud800", "completion": "b"}',
        TaskError,
        "a.jsonl: line 1: prompt contains an unpaired surrogate",
    ),
    "deep": ("a.jsonl", b"[" * 100_000, TaskError, "a.jsonl: line 1: not JSON"),
    "empty": ("a.jsonl", b"", TaskError, "a.jsonl: no pairs"),
    "empty table": ("a.csv", b"", TaskError, "a.csv: no pairs"),
    "header alone": ("a.csv", b"prompt,completion\n", TaskError, "a.csv: no pairs"),
    "two columns": ("a.csv", b"prompt,prompt\na,b\n", TaskError, "a.csv: line 1: two columns have the same name"),
    "cells": ("a.csv", b'prompt,completion\n"a\nb",c\nd\n', TaskError, "a.csv: line 4: 1 cells; the header has 2"),
    "quotes": ("a.csv", b'prompt,completion\n"a"b,c\n', TaskError, "a.csv: line 2: not CSV"),
    "bytes": ("a.csv", b"prompt,completion\n\xff,c\n", TaskError, "a.csv: line .: not CSV"),
    "parquet": ("a.parquet", b"PAR1 or not", TaskError, "a.parquet: not a Parquet file"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, content, kind, reason = BAD[name]
    if content is not None:
        Path(path).write_bytes(content)
    with pytest.raises(kind, match=reason) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_sources_are_one_or_several_and_each_has_its_own_numbers(files: dict[str, Path]) -> None:
    selection = PairSelection(files["csv"], limit=1)
    found = read_all([files["jsonl"], selection], limit=5, dev_docs=2)
    assert [(each.limit, each.dev_docs) for each, _ in found] == [(5, 2), (1, 0)]
    assert [given.version for _, given in read_all(ROWS)] == [given.version for _, given in read_all(str(files["csv"]))]
    assert read_all(()) == []
    with pytest.raises(TaskError, match="b: pairs have the name of a task or of other pairs"):
        refuse_same_names(["a", "b", "b"])
    for wrong in ({"limit": 0}, {"dev_docs": -1}, {"held_out": -1}):
        with pytest.raises(ParseError):
            PairSelection("a", **wrong)
