"""Boosters that have a name: those that came with the package, and those that were pulled from the hub.

Knows names and the folders that they stand for. A folder holds what a repository holds: the booster file, its card and
the rows of its claims; of one that was pulled, also where it came from. Knows nothing of how they get there.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.card_header import CARD, RESULTS, SUFFIX, load_checked
from aft_harness.errors import BoosterError, FileError, ParseError
from aft_harness.files import home, read_regular

BUNDLED = Path(__file__).parents[1] / "bundled"
"""Folders of the boosters that came with the package, by name."""

ORIGIN = "origin.json"
"""Where a pulled booster came from, beside it."""

NAME = re.compile(r"[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?(?:/[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?)?")
LONGEST = 100

_ORIGIN_BYTES = 2**16


@dataclass(frozen=True)
class Entry:
    """A booster under its name.

    Attributes:
        name: What `vector=` calls it.
        folder: Where its files are.
        bundled: Whether it came with the package.
    """

    name: str
    folder: Path
    bundled: bool

    @property
    def file(self) -> Path:
        """The booster file.

        Raises:
            BoosterError: There is none, or more than one.
        """
        found = sorted(self.folder.glob(f"*{SUFFIX}"))
        if len(found) != 1:
            what = "no booster file" if not found else "more than one booster file"
            raise BoosterError(f"{self.name}: {self.folder} has {what}; pull it again")
        return found[0]

    @property
    def card(self) -> Path | None:
        """The card, if there is one."""
        return path if (path := self.folder / CARD).is_file() else None

    @property
    def results(self) -> Path | None:
        """The rows of the card's claims, if there are any."""
        return path if (path := self.folder / RESULTS).is_file() else None

    @cached_property
    def origin(self) -> dict[str, Any]:
        """Where it was pulled from: `address`, `commit`, `booster_sha256`, `date`; empty if it came with the package.

        Raises:
            BoosterError: The record cannot be read.
        """
        if self.bundled:
            return {}
        try:
            found = json.loads(read_regular(self.folder / ORIGIN, _ORIGIN_BYTES))
        except (FileError, ValueError, RecursionError) as error:
            raise BoosterError(f"{self.folder / ORIGIN}: {error}; pull {self.name} again") from None
        if not isinstance(found, dict) or not isinstance(found.get("address"), str):
            raise BoosterError(f"{self.folder / ORIGIN}: does not say where {self.name} came from; pull it again")
        return found

    def load(self) -> Booster:
        """Reads the booster, and refuses one that is not the one which its card names.

        Raises:
            BoosterError: It cannot be read, or is not the card's.
        """
        return load_checked(self.file, self.file.name, self.card, self.name)


def pulled() -> Path:
    """The folder of the boosters that were pulled."""
    return home() / "library"


def check_name(name: str) -> str:
    """A name as it was given.

    Raises:
        ParseError: No booster can be called so: names become names of folders.
    """
    if len(name) > LONGEST or not NAME.fullmatch(name) or ".." in name or "--" in name or name.endswith(SUFFIX):
        raise ParseError(
            f"{name!r} cannot be a booster's name: expected letters a-z, digits and single . _ - within, "
            "with one / at most"
        )
    return name


def place(name: str) -> Path:
    """Where a booster of a name is put when it is pulled."""
    return pulled() / check_name(name).replace("/", "--")


def find(name: str) -> Entry | None:
    """The booster of a name; None if there is none."""
    if len(name) > LONGEST or not NAME.fullmatch(name) or ".." in name or "--" in name:
        return None
    if "/" not in name and (BUNDLED / name).is_dir():
        return Entry(name, BUNDLED / name, True)
    folder = place(name) if not name.endswith(SUFFIX) else None
    return Entry(name, folder, False) if folder is not None and folder.is_dir() else None


def entries() -> Iterator[Entry]:
    """All boosters that have a name: those of the package first, each in the order of their names."""
    for root, bundled in ((BUNDLED, True), (pulled(), False)):
        folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
        for folder in folders:
            name = folder.name.replace("--", "/")
            if NAME.fullmatch(name):  # others, such as what is being written, begin with a dot
                yield Entry(name, folder, bundled)


def unknown(name: str) -> str:
    """What is said of a name that no booster has."""
    known = [entry.name for entry in entries()]
    near = difflib.get_close_matches(name, known, n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else "`aft list` lists names"
    return f"no such booster; give the path of a {SUFFIX} file or a name ({hint})"
