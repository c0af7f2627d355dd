"""Work folders on this machine and elsewhere: the same names give the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from aft_harness.errors import FileError
from aft_harness.studies.storage import Storage, is_local


@pytest.mark.parametrize("kind", ["path", "file", "memory"])
def test_files_are_written_read_and_listed(kind: str, tmp_path: Path) -> None:
    place = {"path": str(tmp_path / "w"), "file": f"file://{tmp_path}/w", "memory": f"memory://{tmp_path.name}/w"}[kind]
    storage = Storage(place)
    assert storage.read("results/a.json") is None and storage.names("results") == []
    storage.write("results/b.json", b"2")
    storage.write("results/a.json", b"1")
    storage.write("results/a.json", b"3")
    storage.write("study.json", b"{}")
    assert storage.names("results") == ["results/a.json", "results/b.json"]
    again = Storage(place)  # another run
    assert again.read("results/a.json") == b"3" and again.read("study.json") == b"{}"
    if kind != "memory":
        assert (tmp_path / "w" / "results" / "b.json").read_bytes() == b"2" and is_local(storage.place)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, reason in (
        (str(tmp_path / "file" / "work"), "cannot be created"),
        ("nosuch://bucket/work", "nosuch://bucket/work: cannot be written .*nosuch"),
        ("s3://bucket/work", "s3://bucket/work: cannot be written .*s3fs"),
    ):
        with pytest.raises(FileError, match=reason) as caught:
            Storage(place)
        assert "\n" not in str(caught.value)
