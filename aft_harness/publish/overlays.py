"""Overlay checkpoints in the user's cache: what engines load that a booster cannot be hooked into.

Each is made once for a model, a booster and a strength, and found again by them: its name is a digest of all that is
in it. Knows the export to a checkpoint; what runs the overlay is the caller's business.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aft_harness.digests import digest
from aft_harness.files import home, make_folder
from aft_harness.publish.export import checkpoint, registry
from aft_harness.publish.export.target import RECORD
from aft_harness.versions import versions

if TYPE_CHECKING:
    from aft_harness.boosters.model_identity import ModelIdentity
    from aft_harness.boosters.variant import Variant
    from aft_harness.publish.export.base import Base

logger = logging.getLogger(__name__)

_NAME = 32  # digits of the digest


@dataclass(frozen=True)
class Overlay:
    """An overlay in the cache.

    Attributes:
        folder: Where it is.
        record: What it was made from: `base_model`, `booster`, `booster_sha256`, `strength` and more.
        own: Bytes that it takes beside the base model's files.
        used: When it was last handed out, in seconds since the epoch.
    """

    folder: Path
    record: dict[str, Any]
    own: int
    used: float


def overlay(base: Base, identity: ModelIdentity, variant: Variant) -> Path:
    """The checkpoint folder of a model with a booster in it, made now or before.

    Several processes may ask for the same one: one makes it, the others wait.

    Args:
        base: The model.
        identity: Its identity.
        variant: The booster and its strength.

    Raises:
        ExportError: No checkpoint of this kind of model can express the booster; the message says why.
        AftError: The booster does not fit, or the model or the cache cannot be read or written.
    """
    folder = home() / "overlays" / digest(_content(base, identity, variant))[:_NAME]
    if _usable(folder):
        return _used(folder)
    make_folder(folder.parent)
    with _lock(folder.parent):
        if not _usable(folder):
            begun, record = time.monotonic(), {"base_model": identity.label}
            with _one_thread():
                registry.written(checkpoint.TARGET, variant, folder, replace=True, model=base, record=record)
            logger.info("wrote %s in %.1f s", folder, time.monotonic() - begun)
    return folder


def overlays() -> list[Overlay]:
    """The overlays of the cache, the last used first."""
    found = []
    for record in (home() / "overlays").glob(f"*/{RECORD}"):
        try:
            inside = [os.lstat(path) for path in record.parent.rglob("*")]
            own = sum(each.st_size for each in inside if each.st_nlink == 1)
            found.append(Overlay(record.parent, json.loads(record.read_bytes()), own, record.stat().st_mtime))
        except (OSError, ValueError):  # another process removes it at this moment
            continue
    return sorted(found, key=lambda each: -each.used)


def clear() -> list[Overlay]:
    """Removes all overlays and returns those that were there; the models that they link to stay.

    Raises:
        OSError: One cannot be removed.
    """
    if not (home() / "overlays").is_dir():
        return []
    with _lock(home() / "overlays"):
        found = overlays()
        for each in found:
            shutil.rmtree(each.folder)
    return found


def _content(base: Base, identity: ModelIdentity, variant: Variant) -> dict[str, Any]:
    """All that is in an overlay.

    A fingerprint is of some numbers of each tensor. That the others are the same ones, too, the files vouch for.
    """
    assert variant.booster is not None
    weights = {name: os.stat(base.folder / name) for name in base.shards}
    return {
        "model": identity.fingerprint,
        "tensors": {name: [each.file, each.dtype, each.shape, each.start] for name, each in base.tensors.items()},
        "weights": {name: [at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns] for name, at in weights.items()},
        "config": base.config,
        "others": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in base.others},
        "booster": variant.booster.sha256,
        "strength": float(variant.strength),
        "versions": {name: versions()[name] for name in ("aft-harness", "transformers")},
    }


def _usable(folder: Path) -> bool:
    """Whether an overlay is there, and what its links point to as well."""
    return (folder / RECORD).is_file() and all(path.exists() for path in folder.rglob("*"))


def _used(folder: Path) -> Path:
    os.utime(folder / RECORD)
    return folder


@contextmanager
def _one_thread() -> Iterator[None]:
    """In this block torch computes in one thread.

    An engine may fork this process, and the child of a process that has used several threads of OpenMP hangs as soon
    as it wants some itself.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    from filelock import FileLock

    with FileLock(folder / ".lock"):
        yield
