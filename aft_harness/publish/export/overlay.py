"""Writing a checkpoint folder that differs from its base in a few small tensors: linked, copied or patched files.

Knows files and bytes. Weights of the base are never loaded: files are linked or copied whole, and where a tensor
changes that the base has already, its bytes are written over in a copy. Knows no models or boosters.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from aft_harness.errors import ExportError
from aft_harness.publish.export.base import CONFIG, INDEX, SINGLE, Base

# Tools find weights by names that begin with `model`; beside an index there must be no `model.safetensors`, which
# transformers would prefer to it.
BASE_WEIGHTS, BIASES = "model-base.safetensors", "model-aft.safetensors"
LINKED, SYMBOLIC, COPIED = "hard links", "symbolic links", "copies"


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        weights: How the base's weights got into the folder: as hard links, symbolic links, copies; the ways that occur.
        added: Bytes of the folder that are its own.
    """

    weights: tuple[str, ...]
    added: int


def write_folder(
    base: Base,
    folder: Path,
    config: Mapping[str, Any],
    changed: Mapping[str, Tensor],
    added: Mapping[str, Tensor],
    *,
    full: bool,
) -> Written:
    """Writes the folder.

    Args:
        base: The model.
        folder: To make.
        config: Its `config.json`.
        changed: Tensors that the base has, with other values of the same shape and type, by their names in its files.
        added: Tensors that the base does not have.
        full: Whether weights are copied rather than linked.
    """
    folder.mkdir()
    touched = {base.tensors[name].file for name in changed}
    names = {file: BASE_WEIGHTS if file == SINGLE else file for file in base.shards}
    ways = []
    for file, name in names.items():
        original, place = (base.folder / file).resolve(), folder / name  # the hub's cache links to its blobs
        ways.append(_copied(original, place) if full or file in touched else _linked(original, place))
    for name, tensor in changed.items():
        _patch(base, name, tensor, folder / names[base.tensors[name].file])
    weight_map = {name: names[stored.file] for name, stored in base.tensors.items()}
    if added:
        if BIASES in names.values():
            raise ExportError(f"{base.label} has a file {BIASES}: it is an export itself; export from its own base")
        (folder / BIASES).write_bytes(save(dict(added), metadata={"format": "pt"}))
        weight_map |= dict.fromkeys(added, BIASES)
    size = sum(stored.size for stored in base.tensors.values())
    size += sum(tensor.numel() * tensor.element_size() for tensor in added.values())
    _write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))})
    _write_json(folder / CONFIG, config)
    for other in base.others:
        place = folder / other.relative_to(base.folder)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(other.resolve(), place)
    found = [os.lstat(path) for path in folder.rglob("*")]
    added_bytes = sum(each.st_size for each in found if stat.S_ISREG(each.st_mode) and each.st_nlink == 1)
    return Written(tuple(sorted(set(ways))), added_bytes)


def _linked(original: Path, place: Path) -> str:
    with suppress(OSError):  # another file system, or one without hard links
        os.link(original, place)
        return LINKED
    with suppress(OSError):
        os.symlink(original, place)
        return SYMBOLIC
    return _copied(original, place)


def _copied(original: Path, place: Path) -> str:
    shutil.copyfile(original, place)
    return COPIED


def _patch(base: Base, name: str, tensor: Tensor, place: Path) -> None:
    """Writes a tensor over the bytes that it has in a file."""
    stored = base.tensors[name]
    data = save({"": tensor.contiguous()})[-stored.size :]  # a file of one tensor ends in its bytes
    if len(data) != stored.size or math.prod(stored.shape) != tensor.numel():
        raise ExportError(f"{base.label}: {name} has another size than its file says")
    with open(place, "r+b") as file:
        file.seek(stored.start)
        file.write(data)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
