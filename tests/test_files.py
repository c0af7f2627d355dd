from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aft_harness.errors import FileError
from aft_harness.files import (
    ABANDONED,
    check_regular,
    exists,
    make_folder,
    read_regular,
    write_atomically,
    written_whole,
)


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
    with pytest.raises(FileError, match=r"^\S*results: not writable$"):
        make_folder(folder)


def test_a_file_in_a_folders_place_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    for path in (tmp_path / "taken", tmp_path / "taken" / "deeper"):
        with pytest.raises(FileError, match=r"taken\S*: cannot be created \(") as caught:
            make_folder(path)
        assert "\n" not in str(caught.value)


KILLED = """
import os, signal, sys
from pathlib import Path
from aft_harness import files
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
files.write_atomically(Path(sys.argv[1]), b"half")
"""


def test_what_a_killed_writer_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], env={**os.environ, "PYTHONPATH": os.getcwd()})
    (left,) = tmp_path.iterdir()
    assert done.returncode != 0 and left.name.startswith(".a.csv.")
    write_atomically(path, b"first")
    assert left.exists(), "its writer may be alive"
    long_ago = time.time() - ABANDONED - 60
    strangers = [".b.csv.abcdefgh.aft-tmp", ".a.csv.markdown", "a.csv.abcdefgh.aft-tmp", ".a.csv.ABCDEFGH.aft-tmp"]
    strangers += [".a.csv.b.abcdefgh.aft-tmp", ".axcsv.abcdefgh.aft-tmp", ".a.csv.old"]
    for stranger in strangers:
        (tmp_path / stranger).write_text("")
    (tmp_path / ".a.csv.folder00.aft-tmp").mkdir()
    (tmp_path / "precious").write_text("")
    (tmp_path / ".a.csv.linked00.aft-tmp").symlink_to("precious")
    for entry in tmp_path.iterdir():
        os.utime(entry, (long_ago, long_ago), follow_symlinks=False)
    write_atomically(path, b"second")
    folder_and_link = [".a.csv.folder00.aft-tmp", ".a.csv.linked00.aft-tmp", "precious"]
    assert sorted(os.listdir(tmp_path)) == sorted(["a.csv", *strangers, *folder_and_link])


def test_the_longest_names_can_be_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "\u00e9" * 127):
        write_atomically(tmp_path / name, b"data")
        assert (tmp_path / name).read_bytes() == b"data"
    with pytest.raises(FileError, match="cannot be written"):
        write_atomically(tmp_path / ("x" * 256), b"")


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "x" * 5000, "a/" * 3000], ids=["zero", "surrogate", "long", "deep"])
def test_what_is_no_path_is_one_error(path: str) -> None:
    assert not exists(path)
    for work in (
        lambda: write_atomically(Path(path), b""),
        lambda: make_folder(Path(path)),
        lambda: check_regular(path),
    ):
        with pytest.raises(FileError):
            work()


def test_what_cannot_be_looked_at_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert not exists(loop) and exists(tmp_path) and not exists(tmp_path / "a")
    (tmp_path / "file").write_text("")
    assert not exists(tmp_path / "file" / "below")

    def closed(path: object) -> None:  # the superuser may look everywhere
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "stat", closed)
    assert not exists(tmp_path)
    with pytest.raises(FileError, match=r"^cannot be read \(Permission denied\)$"):
        check_regular(tmp_path)


@pytest.mark.timeout(20)
def test_only_regular_files_are_read_and_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"data")
    (tmp_path / "link").symlink_to("a")
    assert read_regular(tmp_path / "a", 4) == read_regular(tmp_path / "link", 9) == b"data"
    assert check_regular(tmp_path / "link") == 4
    with pytest.raises(FileError, match="larger than 3 bytes"):
        read_regular(tmp_path / "a", 3)
    with pytest.raises(FileError, match="no such booster file"):
        check_regular(tmp_path / "b", "booster file")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(FileError, match="not a regular file"):
            read_regular(path, 9)
        with pytest.raises(FileError, match="not a regular file"):
            write_atomically(path, b"")


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("there", [False, True])
def test_what_a_block_writes_is_there_whole_or_not_at_all(kind: str, there: bool, tmp_path: Path) -> None:
    path = tmp_path / "out"

    def fill(place: Path, text: str) -> None:
        if kind == "folder":
            place.mkdir()
            place = place / "inner"
        place.write_text(text)

    if there:
        fill(path, "old")
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), written_whole(path, replace=there) as place:
            fill(place, "half")
            raise error
        assert os.listdir(tmp_path) == ["out"] * there
    with written_whole(path, replace=there) as place:
        assert not place.exists() and place.name == "out"
        fill(place, "new")
    assert (path / "inner" if kind == "folder" else path).read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]
    with pytest.raises(FileError, match="out: exists already"), written_whole(path) as place:
        fill(place, "newer")
    assert (path / "inner" if kind == "folder" else path).read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


def test_what_was_there_is_put_back_where_the_new_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    path.write_text("old")
    rename = os.rename

    def fails_for_the_new(source: Path, target: Path) -> None:
        if Path(source).read_text() == "new":
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails_for_the_new)
    with pytest.raises(FileError, match="No space left"), written_whole(path, replace=True) as place:
        place.write_text("new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["out"]


def test_an_error_of_another_file_is_not_taken_for_one_of_this(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "out"):
        (tmp_path / "source").read_text()
    with pytest.raises(FileError, match="out: cannot be written"), written_whole(tmp_path / "out") as place:
        (place / "in no folder").write_text("")
    with pytest.raises(FileError, match="cannot be written"), written_whole(tmp_path / "nowhere" / "out"):
        pass


def test_folders_that_killed_writers_left_behind_go_when_they_are_old(tmp_path: Path) -> None:
    old, busy, other = (tmp_path / f".{name}.abcdefgh.aft-tmp-folder" for name in ("out", "out", "other"))
    busy = busy.with_name(".out.12345678.aft-tmp-folder")
    long_ago = time.time() - 2 * ABANDONED
    for folder in (old, busy, other):
        folder.mkdir()
        (folder / "part").write_text("x")
        os.utime(folder / "part", (long_ago, long_ago))
        os.utime(folder, (long_ago, long_ago))
    os.utime(busy / "part")  # still being written
    with written_whole(tmp_path / "out") as place:
        place.write_text("new")
    assert sorted(os.listdir(tmp_path)) == sorted(["out", busy.name, other.name])
