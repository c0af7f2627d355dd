"""The booster file: safetensors with one JSON text, checked in every respect before use.

Knows docs/booster-format.md. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from aft_harness.boosters.booster import Booster, canonical
from aft_harness.boosters.injections import KINDS, Injection
from aft_harness.boosters.provenance import Documents, Provenance
from aft_harness.errors import AftError, BoosterError, FileError
from aft_harness.files import check_regular, exists, read_regular, write_atomically
from aft_harness.text import printable

FORMAT_VERSION = 1
METADATA_KEY = "aft"
SIZE_LIMIT = 256 * 2**20
"""Bytes. A booster has a few KB; a file beyond this is something else."""

METADATA_LIMIT = 16 * 2**20
"""Bytes of the JSON text. A mixture holds the provenance of all its parts, which a mixture of mixtures repeats."""

DOCUMENTS_IN_FILE = 2000
"""Training-document hashes beyond this number go into a sidecar file beside the booster."""

logger = logging.getLogger(__name__)

_LAYER = re.compile(r"0|[1-9][0-9]{0,4}")
_TENSOR = re.compile(rf"layers\.({_LAYER.pattern})\.(.+)", re.DOTALL)
_HASH = re.compile(rb"[0-9a-f]{16}")


def save(booster: Booster, path: str | os.PathLike[str]) -> None:
    """Writes a booster as safetensors, atomically: the old file stays whole until the new one is.

    Raises:
        FileError: The folder does not exist or cannot be written.
        BoosterError: Its provenance is too large for a booster file.
    """
    path = Path(path)
    provenance, hashes = _split_documents(booster.provenance.to_json())
    header = canonical({"format_version": FORMAT_VERSION, "injections": booster.specs, "provenance": provenance})
    if (size := len(header.encode())) > METADATA_LIMIT:
        raise BoosterError(f"{path}: the metadata would have {size} bytes; the limit is {METADATA_LIMIT}")
    if hashes:
        write_atomically(sidecar(path), "".join(f"{line}\n" for line in hashes).encode())
    tensors = {name: tensor.detach().to("cpu", torch.float32).clone() for name, tensor in booster.tensors.items()}
    # One metadata key with sorted JSON: safetensors orders several keys at random, which would make equal
    # boosters differ as files.
    write_atomically(path, safetensors_bytes(tensors, metadata={METADATA_KEY: header}))


def load(path: str | os.PathLike[str], source: str | None = None) -> Booster:
    """Reads a booster file and checks all of it.

    Args:
        path: Of the file.
        source: What messages call it; its path if not given.

    Raises:
        BoosterError: With the file's name and the reason, whatever is wrong with it.
    """
    path = Path(path)
    try:
        return _load(path)
    except (AftError, OSError, ValueError, RecursionError) as error:
        raise BoosterError(f"{source or path}: {_one_line(error)}") from None


def sidecar(path: Path) -> Path:
    """The file beside a booster that holds the hashes of very many training documents, one a line."""
    return path.with_name(f"{path.name}.documents.txt")


def _load(path: Path) -> Booster:
    if (size := check_regular(path, "booster file")) > SIZE_LIMIT:
        raise BoosterError(f"the file has {size} bytes; a booster has at most {SIZE_LIMIT}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if METADATA_KEY not in metadata:
                raise BoosterError("a safetensors file, but not a booster (no 'aft' metadata)")
            header = _read_header(metadata[METADATA_KEY])
            tensors = {name: _read_tensor(file, name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise BoosterError(f"not a safetensors file ({_one_line(error)}); boosters are never pickle files") from None
    provenance = Provenance.of(header["provenance"])
    if provenance.documents is not None and provenance.documents.sidecar:
        provenance = _join_documents(provenance, provenance.documents, sidecar(path))
    return Booster(_read_injections(header["injections"], tensors), provenance)


def _read_tensor(file: Any, name: str) -> Tensor:
    # Asked first: there are types that torch has not.
    if (dtype := file.get_slice(name).get_dtype()) != "F32":
        raise BoosterError(f"{name} is {dtype}, not float32")
    return file.get_tensor(name)


def _split_documents(provenance: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    documents = provenance.get("documents") or {}
    hashes = list(documents.get("hashes", []))
    if len(hashes) <= DOCUMENTS_IN_FILE:
        return provenance, []
    kept = {"count": len(hashes)} | {key: value for key, value in documents.items() if key != "hashes"}
    return {**provenance, "documents": {**kept, "sidecar": True, "sidecar_sha256": _list_digest(hashes)}}, hashes


def _list_digest(hashes: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _join_documents(provenance: Provenance, documents: Documents, path: Path) -> Provenance:
    """The provenance with the hashes of a sidecar file, or as it is where there is none that belongs to it.

    The booster works without: that the list is missing is said where it matters.
    """
    if not exists(path):
        return provenance
    try:
        hashes = _read_hashes(path, documents)
    except (FileError, BoosterError) as error:
        # As text: a handler that keeps records would keep the error, its frames, and in them the mapped file.
        logger.warning("%s: %s; ignoring this file", printable(path), str(error))
        return provenance
    kept = documents.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude={"sidecar", "sidecar_sha256"})
    return provenance.changed(documents={**kept, "hashes": hashes})


def _read_hashes(path: Path, documents: Documents) -> list[str]:
    # Rows with one question share a hash, so that there may be fewer hashes than documents.
    most = max((documents.count or 0) - (documents.unlisted_count or 0), 0)
    lines = read_regular(path, min(most * len("0123456789abcdef\r\n"), SIZE_LIMIT)).split()
    if not all(map(_HASH.fullmatch, lines)):
        raise BoosterError("not a list of hashes (16 hex digits per line)")
    hashes = [line.decode() for line in lines]
    if not 0 < len(set(hashes)) == len(hashes) <= most:
        raise BoosterError(f"does not match the booster's {most} training documents")
    if documents.sidecar_sha256 not in (None, _list_digest(hashes)):
        raise BoosterError("belongs to another booster")
    return hashes


def _read_header(text: str) -> dict[str, Any]:
    if (size := len(text.encode())) > METADATA_LIMIT:
        raise BoosterError(f"the 'aft' metadata has {size} bytes; the limit is {METADATA_LIMIT}")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of very many digits
        raise BoosterError(f"the 'aft' metadata is not valid JSON ({_one_line(error)})") from None
    if not isinstance(header, dict):
        raise BoosterError("the 'aft' metadata is not a JSON object")
    version = header.get("format_version")
    if isinstance(version, bool) or version != FORMAT_VERSION:
        raise BoosterError(
            f"format version {version!r} is not supported; this aft_harness reads version {FORMAT_VERSION}"
        )
    for key in ("injections", "provenance"):
        if not isinstance(header.get(key), dict):
            raise BoosterError(f"the 'aft' metadata lacks '{key}'")
    return header


def _read_injections(specs: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[int, Injection]:
    by_layer: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        layer, rest = match.groups() if match else ("", name)
        by_layer[layer][rest] = tensor
    injections: dict[int, Injection] = {}
    for key, spec in specs.items():
        if not _LAYER.fullmatch(key):
            raise BoosterError(f"layer {key!r} is out of range: layers are whole numbers counted from 0")
        if not isinstance(spec, dict) or not isinstance(spec.get("kind"), str) or spec["kind"] not in KINDS:
            kind = spec.get("kind") if isinstance(spec, dict) else spec
            raise BoosterError(f"layer {key}: unknown kind {kind!r}; this aft_harness supports {', '.join(KINDS)}")
        try:
            injections[int(key)] = KINDS[spec["kind"]](spec, by_layer.pop(key, {}))
        except ValueError as error:
            raise BoosterError(f"layer {key}: {error}") from None
    if by_layer:
        layer, parts = next(iter(by_layer.items()))
        raise BoosterError(f"unknown tensor: {f'layers.{layer}.' if layer else ''}{next(iter(parts))}")
    return injections


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
