"""The booster file: safetensors with one JSON text, checked in every respect before use.

Knows docs/booster-format.md. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from aft_harness.boosters.booster import Booster, canonical
from aft_harness.boosters.injections import KINDS, Injection
from aft_harness.boosters.provenance import Provenance
from aft_harness.errors import BoosterError
from aft_harness.files import write_atomically

FORMAT_VERSION = 1
METADATA_KEY = "aft"
SIZE_LIMIT = 256 * 2**20
"""Bytes. A booster has a few KB; a file beyond this is something else."""

DOCUMENTS_IN_FILE = 2000
"""Training-document hashes beyond this number go into a sidecar file beside the booster."""

_LAYER = re.compile(r"0|[1-9][0-9]{0,4}")


def save(booster: Booster, path: str | os.PathLike[str]) -> None:
    """Writes a booster as safetensors, atomically: the old file stays whole until the new one is.

    Raises:
        FileError: The folder does not exist or cannot be written.
    """
    path = Path(path)
    provenance, hashes = _split_documents(booster.provenance.to_json())
    header = {"format_version": FORMAT_VERSION, "injections": booster.specs, "provenance": provenance}
    if hashes:
        write_atomically(sidecar(path), "".join(f"{line}\n" for line in hashes).encode())
    tensors = {name: tensor.detach().to("cpu", torch.float32).clone() for name, tensor in booster.tensors.items()}
    # One metadata key with sorted JSON: safetensors orders several keys at random, which would make equal
    # boosters differ as files.
    write_atomically(path, safetensors_bytes(tensors, metadata={METADATA_KEY: canonical(header)}))


def load(path: str | os.PathLike[str]) -> Booster:
    """Reads a booster file and checks all of it.

    Raises:
        BoosterError: With the file's name and the reason, whatever is wrong with it.
    """
    path = Path(path)
    try:
        return _load(path)
    except BoosterError as error:
        raise BoosterError(f"{path}: {error}") from None
    except (OSError, ValueError) as error:
        raise BoosterError(f"{path}: {_one_line(error)}") from None


def sidecar(path: Path) -> Path:
    """The file beside a booster that holds the hashes of very many training documents, one a line."""
    return path.with_name(f"{path.name}.documents.txt")


def _load(path: Path) -> Booster:
    if not path.exists():
        raise BoosterError("no such booster file")
    if not path.is_file():
        raise BoosterError("is not a file")
    if (size := path.stat().st_size) > SIZE_LIMIT:
        raise BoosterError(f"has {size} bytes; a booster has at most {SIZE_LIMIT}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise BoosterError(f"is not a safetensors file ({_one_line(error)}); boosters are never pickles") from None
    if METADATA_KEY not in metadata:
        raise BoosterError("is a safetensors file but not a booster (it lacks the 'aft' metadata)")
    header = _read_header(metadata[METADATA_KEY])
    provenance = Provenance.of(_join_documents(header["provenance"], path))
    return Booster(_read_injections(header["injections"], tensors), provenance)


def _split_documents(provenance: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    documents = provenance.get("documents") or {}
    hashes = documents.get("hashes", [])
    if len(hashes) <= DOCUMENTS_IN_FILE:
        return provenance, []
    kept = {key: value for key, value in documents.items() if key != "hashes"}
    return {**provenance, "documents": {**kept, "sidecar": True}}, list(hashes)


def _join_documents(provenance: dict[str, Any], path: Path) -> dict[str, Any]:
    documents = provenance.get("documents")
    if not isinstance(documents, dict) or not documents.get("sidecar"):
        return provenance
    try:
        lines = sidecar(path).read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError):
        return provenance  # the booster works without it; that the list is missing is said where it matters
    kept = {key: value for key, value in documents.items() if key != "sidecar"}
    return {**provenance, "documents": {**kept, "hashes": lines}}


def _read_header(text: str) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise BoosterError(f"its 'aft' metadata is not JSON ({_one_line(error)})") from None
    if not isinstance(header, dict):
        raise BoosterError("its 'aft' metadata is not a JSON object")
    if header.get("format_version") != FORMAT_VERSION:
        raise BoosterError(
            f"has format version {header.get('format_version')!r}; this aft_harness reads {FORMAT_VERSION}"
        )
    for key in ("injections", "provenance"):
        if not isinstance(header.get(key), dict):
            raise BoosterError(f"its 'aft' metadata lacks '{key}'")
    return header


def _read_injections(specs: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[int, Injection]:
    claimed: set[str] = set()
    injections: dict[int, Injection] = {}
    for key, spec in specs.items():
        if not _LAYER.fullmatch(key):
            raise BoosterError(f"layer {key!r} is out of range: layers are whole numbers counted from 0")
        if not isinstance(spec, dict) or not isinstance(spec.get("kind"), str) or spec["kind"] not in KINDS:
            kind = spec.get("kind") if isinstance(spec, dict) else spec
            raise BoosterError(f"layer {key} has kind {kind!r}; this aft_harness knows {', '.join(KINDS)}")
        prefix = f"layers.{key}."
        parts = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        claimed.update(prefix + name for name in parts)
        for name, tensor in parts.items():
            if tensor.dtype != torch.float32:
                raise BoosterError(f"{prefix}{name} is {tensor.dtype}, not float32")
        try:
            injections[int(key)] = KINDS[spec["kind"]](spec, parts)
        except ValueError as error:
            raise BoosterError(f"layer {key}: {error}") from None
    if unknown := sorted(set(tensors) - claimed):
        raise BoosterError(f"holds unknown tensors: {', '.join(unknown[:3])}")
    return injections


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
