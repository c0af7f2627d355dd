"""A work folder on any file system that fsspec knows: this machine's, a bucket, memory.

Knows names and bytes. One process at a time writes to it.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

from aft_harness.errors import FileError
from aft_harness.files import make_folder, write_atomically
from aft_harness.text import printable, reason


def is_local(place: str | Path) -> bool:
    """Whether a work folder is a path of this machine."""
    return isinstance(place, Path) or "://" not in place


class Storage:
    """Files by name, below a folder. Names have parts separated by `/`."""

    def __init__(self, place: str | Path) -> None:
        """Opens the folder, makes it if it does not exist, and tries whether files can be written there.

        Args:
            place: A path, or an address such as `s3://bucket/folder`.

        Raises:
            FileError: It cannot be written, or the file system is not known here.
        """
        self.place = str(place).removeprefix("file://")
        self.folder = Path(self.place) if is_local(self.place) else None
        self._files: Any = None
        if self.folder is not None:
            make_folder(self.folder)
            return
        import fsspec

        try:
            self._files, self._root = fsspec.core.url_to_fs(self.place)
            self._files.makedirs(self._root, exist_ok=True)
            trial = f".aft-{uuid.uuid4().hex}"
            self.write(trial, b"")
            self._files.rm_file(self._path(trial))
        except FileError:
            raise
        except Exception as error:  # whatever a file system's library raises
            raise FileError(f"{self.place}: cannot be written ({self._reason(error)})") from None

    def __str__(self) -> str:
        """The path or address."""
        return self.place

    def read(self, name: str) -> bytes | None:
        """The bytes of a file, or None where there is none.

        Raises:
            FileError: It cannot be read.
        """
        try:
            if self.folder is not None:
                return (self.folder / name).read_bytes()
            return bytes(self._files.cat_file(self._path(name)))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise FileError(f"{self.place}/{name}: cannot be read ({self._reason(error)})") from None

    def write(self, name: str, data: bytes) -> None:
        """Writes a file, whole: on this machine atomically, elsewhere in one call of the file system.

        Raises:
            FileError: It cannot be written.
        """
        if self.folder is not None:
            path = self.folder / name
            make_folder(path.parent)
            write_atomically(path, data)
            return
        place = self._path(name)
        try:
            self._files.makedirs(os.path.dirname(place), exist_ok=True)
            self._files.pipe_file(place, data)
        except Exception as error:
            raise FileError(f"{self.place}/{name}: cannot be written ({self._reason(error)})") from None

    def names(self, folder: str) -> list[str]:
        """The names of the files directly in a folder, in order.

        Raises:
            FileError: They cannot be listed.
        """
        try:
            if self.folder is not None:
                found = [entry.name for entry in os.scandir(self.folder / folder) if entry.is_file()]
            else:
                self._files.invalidate_cache()
                found = [os.path.basename(path) for path in self._files.ls(self._path(folder), detail=False)]
        except FileNotFoundError:
            return []
        except Exception as error:
            raise FileError(f"{self.place}/{folder}: cannot be read ({self._reason(error)})") from None
        return sorted(f"{folder}/{name}" for name in found if name and not name.startswith("."))

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    @staticmethod
    def _reason(error: Exception) -> str:
        return printable(getattr(error, "strerror", None) or reason(error))[:300]
