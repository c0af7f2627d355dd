"""Writing files so that nobody ever sees half of one. Knows paths and bytes, and nothing of what they hold."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from aft_harness.errors import FileError


def write_atomically(path: Path, data: bytes) -> None:
    """Writes `data` to `path` so that a reader, or a crash at any moment, sees the old file or the new one.

    A symbolic link is followed: the file that it points to is replaced, and the link stays.

    Raises:
        FileError: The folder does not exist or cannot be written.
    """
    target = Path(os.path.realpath(path))
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        if temporary is not None:
            os.unlink(temporary)


def make_folder(path: Path) -> Path:
    """Makes a folder that results go to, with its parents, and checks that files can be written there.

    Raises:
        FileError: It cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{path}: cannot be made ({error.strerror or error})") from None
    if not os.access(path, os.W_OK):
        raise FileError(f"{path}: cannot be written to")
    return path
