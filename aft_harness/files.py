"""Writing files so that nobody ever sees half of one, and reading those of others without harm.

Knows paths and bytes, and nothing of what they hold.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aft_harness.errors import FileError

ABANDONED = 3600.0
"""Seconds after which a temporary file is nobody's any more: all its bytes are written at once, in a moment."""

_SUFFIX, _FOLDER_SUFFIX = ".aft-tmp", ".aft-tmp-folder"
_NAME_BYTES = 200  # of the 255 that file systems allow, so that the name of the temporary file fits, too


def write_atomically(path: Path, data: bytes) -> None:
    """Writes `data` to `path` so that a reader, or a crash at any moment, sees the old file or the new one.

    A symbolic link is followed: the file that it points to is replaced, and the link stays. What killed writers of the
    same file left behind is removed.

    Raises:
        FileError: The folder does not exist or cannot be written.
    """
    temporary: str | None = None
    try:
        target = Path(os.path.realpath(path))
        if exists(target) and not target.is_file():  # a device's name, say, which must not become that of a file
            raise FileError(f"{path}: cannot be written (not a regular file)")
        prefix = _temporary_prefix(target)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=prefix, suffix=_SUFFIX)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
        temporary = None
        _remove_abandoned(target.parent, prefix)
    except (OSError, ValueError) as error:  # ValueError: what no path can hold
        raise FileError(f"{path}: cannot be written ({_reason(error)})") from None
    finally:
        if temporary is not None:
            with suppress(FileNotFoundError):
                os.unlink(temporary)


@contextmanager
def written_whole(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A place beside `path` at which a block writes a file or a folder, which then becomes `path`, whole.

    What the block raises leaves `path` as it was, and nothing else. What killed writers of the same path left behind is
    removed. A symbolic link is followed.

    Args:
        path: Where it will be.
        replace: Whether what is there may be replaced.

    Yields:
        A path with the same name, in a folder of its own, at which there is nothing yet.

    Raises:
        FileError: The folder does not exist or cannot be written, or something is at `path` that is not to be replaced.
    """
    with folder_beside(path) as holder:
        target = Path(os.path.realpath(path))
        place = holder / target.name
        yield place
        _put(place, target, holder / "replaced", path, replace)


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A folder beside `path` for what a block prepares; it is gone afterwards, see `written_whole`.

    Raises:
        FileError: Something in it cannot be written.
    """
    target = Path(os.path.realpath(path))
    prefix = _temporary_prefix(target)
    try:
        holder = Path(tempfile.mkdtemp(dir=target.parent, prefix=prefix, suffix=_FOLDER_SUFFIX))
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: cannot be written ({_reason(error)})") from None
    try:
        yield holder
        _remove_abandoned(target.parent, prefix)
    except OSError as error:
        if error.filename is not None and not str(error.filename).startswith(str(holder)):
            raise  # of another file, which the block read
        raise FileError(f"{path}: cannot be written ({_reason(error)})") from None
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def is_temporary(path: Path) -> bool:
    """Whether a file, or a folder that it is in, is one that a writer makes and, if it is killed, leaves behind."""
    return any(part.endswith((_SUFFIX, _FOLDER_SUFFIX)) for part in path.parts)


def _put(place: Path, target: Path, aside: Path, path: Path, replace: bool) -> None:
    """Renames what was written to where it belongs; what was there before goes aside, or stays if that fails."""
    try:
        if not os.path.lexists(target):
            os.rename(place, target)
            return
        if not replace:
            raise FileError(f"{path}: exists already")
        os.rename(target, aside)
        try:
            os.rename(place, target)
        except OSError:
            os.rename(aside, target)
            raise
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({_reason(error)})") from None


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a regular file, or of the one that a link points to.

    Args:
        path: Of the file.
        limit: More bytes than these are not read.

    Raises:
        FileError: No file, or none that can be read; a folder, a pipe or a device, which could block or never end; more
            bytes than the limit.
    """
    try:
        check_regular(path)
        # Should it have become a pipe by now, opening it does not wait for a writer.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise FileError("not a regular file")
            data = file.read(limit + 1)
    except OSError as error:
        raise FileError(f"cannot be read ({_reason(error)})") from None
    if len(data) > limit:
        raise FileError(f"larger than {limit} bytes")
    return data


def check_regular(path: Path, kind: str = "file") -> int:
    """The size in bytes of a regular file, or of the one that a link points to.

    Args:
        path: Of the file.
        kind: What it should be, for the message.

    Raises:
        FileError: There is none, or it is something else.
    """
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileError(f"no such {kind}") from None
    except (OSError, ValueError) as error:
        raise FileError(f"cannot be read ({_reason(error)})") from None
    if not stat.S_ISREG(found.st_mode):
        raise FileError("not a regular file")
    return found.st_size


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is something at a path; what is no path, or cannot be looked at, does not exist.

    Unlike `Path.exists`, which raises where a name is longer than names can be or a folder on the way is closed.
    """
    try:
        os.stat(path)
    except (OSError, ValueError):
        return False
    return True


def absolute(name: str) -> str:
    """A name that is a folder here by its whole path, which other machines may see; any other as it is."""
    return os.path.abspath(name) if os.path.isdir(name) else name


def home() -> Path:
    """The folder in which things are kept between runs: `$AFT_HOME`, else `aft_harness` in the user's cache folder."""
    if place := os.environ.get("AFT_HOME"):
        return Path(place).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "aft_harness"


def make_folder(path: Path) -> Path:
    """Makes a folder that results go to, with its parents, and checks that files can be written there.

    Raises:
        FileError: It cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        writable = os.access(path, os.W_OK)
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: cannot be created ({_reason(error)})") from None
    if not writable:
        raise FileError(f"{path}: not writable")
    return path


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _temporary_prefix(target: Path) -> str:
    name = target.name
    if len(os.fsencode(name)) > _NAME_BYTES:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".{name}."


def _remove_abandoned(folder: Path, prefix: str) -> None:
    """Removes what writers of the same path left behind when they were killed, and nothing that may be in use."""
    temporary = re.compile(rf"{re.escape(prefix)}[a-z0-9_]{{8}}({re.escape(_SUFFIX)}|{re.escape(_FOLDER_SUFFIX)})")
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if (match := temporary.fullmatch(entry.name)) is None:
                continue
            with suppress(OSError):  # another writer may be removing it as well
                mode = entry.stat(follow_symlinks=False).st_mode
                if match[1] == _SUFFIX and stat.S_ISREG(mode) and _abandoned(entry.path):
                    os.unlink(entry.path)
                elif match[1] == _FOLDER_SUFFIX and stat.S_ISDIR(mode) and _abandoned(entry.path):
                    shutil.rmtree(entry.path)


def _abandoned(path: str) -> bool:
    """Whether a file, or everything in a folder, has not been written to for long: large files take their time."""
    inside = (os.path.join(place, name) for place, folders, files in os.walk(path) for name in (*folders, *files))
    return all(time.time() - os.lstat(each).st_mtime > ABANDONED for each in (path, *inside))
