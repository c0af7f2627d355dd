"""Pulling a booster from the hub into the library: its file, card and results, under a name.

Knows the library's folder. A booster is there whole or not at all, and none takes another's place unasked, however many
processes pull at once.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from aft_harness.boosters import card_header, catalogue, file_format, hub
from aft_harness.boosters.booster import Booster
from aft_harness.errors import BoosterError, FileError
from aft_harness.files import exists, make_folder, read_regular, written_whole
from aft_harness.publish.library.publication import Publication


@dataclass(frozen=True)
class Pulled:
    """What was pulled.

    Attributes:
        name: What `vector=` calls it.
        booster: The booster.
        address: Where it came from; None for one that came with the package.
        commit: The commit that it is of.
        size: Bytes of the booster file.
        changed: Whether the library changed.
    """

    name: str
    booster: Booster = field(repr=False)
    address: str | None
    commit: str | None
    size: int
    changed: bool


def pull(source: str, *, name: str | None = None, overwrite: bool = False) -> Pulled:
    """Fetches a booster from the hub into the library, so that `vector=NAME` finds it.

    Args:
        source: `hf://owner/repo[/file][@revision]`, `owner/repo`, or the name of a booster that was pulled before: that
            is fetched again from where it came from.
        name: What it is called here; by default `owner/repo`.
        overwrite: Whether another booster of that name may be replaced.

    Raises:
        AftError: It cannot be had, is not the booster of its card, or the name is taken.
    """
    known = catalogue.find(source) if not source.startswith(hub.SCHEME) else None
    if known is not None and known.bundled and name is None:
        return Pulled(source, known.load(), None, None, known.file.stat().st_size, False)
    address = _address(source, known)
    name = catalogue.check_name(name or (source if known is not None else address.repo.lower()))
    other = catalogue.find(name)
    if other is not None and other.bundled:
        raise BoosterError(f"{name}: a booster of this name came with the package; choose another with --name")
    fetched = hub.fetch(address, results=True)
    if fetched.card is None or (named := card_header.named_by(fetched.card)) is None:
        raise BoosterError(f"{fetched.address}: no card names it; use vector={fetched.address} without pulling it")
    if named[0] != fetched.address.file:
        raise BoosterError(f"{fetched.address}: not the booster of the repository's card, which is {named[0]}")
    booster = fetched.load()
    Publication.read(str(fetched.address), booster, fetched.card, fetched.results)
    size = fetched.booster.stat().st_size
    changed = _put(fetched, booster, name, overwrite)
    return Pulled(name, booster, str(fetched.address), fetched.commit, size, changed)


def _address(source: str, known: catalogue.Entry | None) -> hub.Address:
    if known is not None and not known.bundled:
        return hub.Address.parse(known.origin["address"])
    if source.startswith(hub.SCHEME):
        return hub.Address.parse(source, whole=False)
    repo, at, revision = source.partition("@")
    if "/" not in repo:
        raise BoosterError(f"{source}: no booster of this name; give hf://owner/repo")
    return hub.Address.parse(f"{hub.SCHEME}{repo}{at}{revision}", whole=False)


def _put(fetched: hub.Fetched, booster: Booster, name: str, overwrite: bool) -> bool:
    """Puts the files where the name leads; whether that changed anything."""
    folder = make_folder(catalogue.pulled())
    target = catalogue.place(name)
    try:
        lock = FileLock(folder / ".lock")
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # the latter from file systems without locks
        raise FileError(f"{folder}: cannot be locked ({getattr(error, 'strerror', None) or error})") from None
    try:
        before = _present(target, name)
        origin = {"address": str(fetched.address), "commit": fetched.commit, "booster_sha256": booster.sha256}
        if before is not None and {**before, "date": ""} == {**origin, "date": ""}:
            return False
        if before is not None and before.get("booster_sha256") != booster.sha256 and not overwrite:
            raise BoosterError(_moved(name, before, origin))
        with written_whole(target, replace=True) as place:
            place.mkdir()
            for path, file in _files(fetched):
                (place / file).write_bytes(read_regular(path, file_format.SIZE_LIMIT))
            record = {**origin, "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
            (place / catalogue.ORIGIN).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    finally:
        lock.release()
    return True


def _present(target: Path, name: str) -> dict[str, str] | None:
    """The record of what a name stands for now; an empty one if it cannot be used, None if there is nothing."""
    if not exists(target):
        return None
    entry = catalogue.Entry(name, target, False)
    try:
        entry.load()
        return entry.origin
    except BoosterError:
        return {}


def _moved(name: str, before: dict[str, str], origin: dict[str, str]) -> str:
    if before.get("address") == origin["address"]:
        old, new = str(before.get("commit"))[:7], origin["commit"][:7]
        return f"{name}: {origin['address']} moved from {old} to {new}, where it is another booster; use --overwrite"
    came = f", from {before['address']}" if before.get("address") else ""
    return f"{name}: the library has another booster of this name{came}; use --name, or --overwrite to replace it"


def _files(fetched: hub.Fetched) -> list[tuple[Path, str]]:
    """What is copied, under which names."""
    assert fetched.card is not None
    found = [(fetched.booster, fetched.booster.name), (fetched.card, card_header.CARD)]
    if fetched.results is not None:
        found.append((fetched.results, card_header.RESULTS))
    sidecar = file_format.sidecar(fetched.booster)
    if exists(sidecar):
        found.append((sidecar, sidecar.name))
    return found
