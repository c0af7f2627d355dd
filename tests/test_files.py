from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from aft_harness.errors import FileError
from aft_harness.files import make_folder, write_atomically


def test_a_file_is_made_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for data in (b"first", b"", b"third\n"):
        write_atomically(path, data)
        assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["a.csv"]


def test_its_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"")
    (tmp_path / "b").write_bytes(b"")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)


def test_a_symbolic_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "board.csv", tmp_path / "board.csv"
    target.write_bytes(b"old")
    link.symlink_to(Path("elsewhere") / "board.csv")
    write_atomically(link, b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"
    assert not target.is_symlink() and os.listdir(tmp_path / "elsewhere") == ["board.csv"]


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
def test_a_failure_at_any_step_leaves_the_old_file(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"old")

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(FileError, match=r"a\.csv: cannot be written \(No space left on device\)"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.csv"]


def test_an_interruption_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"old")

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.csv"]


def test_no_folder_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"^\S*nowhere/a\.csv: cannot be written \(No such file or directory\)$"):
        write_atomically(tmp_path / "nowhere" / "a.csv", b"")


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "results"
    assert make_folder(folder) == folder and folder.is_dir()
    assert make_folder(folder) == folder
    assert make_folder(tmp_path / "some" / "where") == tmp_path / "some" / "where"
    # The superuser may write anywhere, whatever a folder's mode says.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(FileError, match=r"^\S*results: cannot be written to$"):
        make_folder(folder)


def test_a_file_in_a_folders_place_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    for path in (tmp_path / "taken", tmp_path / "taken" / "deeper"):
        with pytest.raises(FileError, match=r"taken\S*: cannot be made \(") as caught:
            make_folder(path)
        assert "\n" not in str(caught.value)
