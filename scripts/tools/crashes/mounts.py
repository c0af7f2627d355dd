"""Small file systems in memory, for processes that may mount some: root, or anyone where there are user namespaces."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_MARK = "AFT_CRASHES_MOUNT"


def possible() -> bool:
    """Whether file systems can be mounted; see `in_namespace`."""
    return _MARK in os.environ


def in_namespace(folder: Path) -> None:
    """Starts this program afresh in a mount namespace, where that is allowed: what is mounted vanishes with it.

    Args:
        folder: A folder on which mounting is tried, in a namespace that ends at once.
    """
    for options in (["--mount"], ["--map-root-user", "--mount"]):
        command = ["unshare", *options]
        with suppress(OSError):
            tried = [*command, "mount", "-t", "tmpfs", "none", str(folder)]
            if not possible() and subprocess.run(tried, capture_output=True, check=False).returncode == 0:
                os.environ[_MARK] = "yes"
                os.execvp("unshare", [*command, sys.executable, *sys.argv])


@contextmanager
def mounted(place: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes while the block runs."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@contextmanager
def filled(place: Path, room: int) -> Iterator[None]:
    """While the block runs, a file takes all of a file system but so many bytes."""
    filler = place / ".filler"
    with filler.open("wb") as file:
        found = os.statvfs(place)
        os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - room)
        try:
            yield
        finally:
            filler.unlink()


def make_read_only(place: Path) -> None:
    """From now on nothing in a mounted file system can be changed."""
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
