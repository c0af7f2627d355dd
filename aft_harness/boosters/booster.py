"""What a booster is: injections by decoder layer, and where they came from.

Knows the file format, identity and mixing; what one injection does stands in `injections.py`. Knows nothing of models,
tasks or how boosters are made; attaching one to a running model is `steering.py`'s work, and finding the file that a
user named is `references.py`'s.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from aft_harness.boosters import documents
from aft_harness.boosters.injections import KINDS, Injection, StaticInjection
from aft_harness.errors import BoosterError

FORMAT_VERSION = 1
METADATA_KEY = "aft"
SIZE_LIMIT = 256 * 2**20
"""Bytes. A booster has a few KB; a file beyond this is something else."""

DOCUMENTS_IN_FILE = 2000
"""Training-document hashes beyond this number go into a sidecar file beside the booster."""

_LAYER = re.compile(r"0|[1-9][0-9]{0,4}")


@dataclass(frozen=True, eq=False)
class Booster:
    """Injections for one or more decoder layers, plus provenance.

    Attributes:
        injections: By 0-based index of the decoder layer whose output is changed.
        provenance: Where the booster came from, JSON-compatible: see `docs/booster-format.md`.
    """

    injections: Mapping[int, Injection]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Orders the layers and refuses what no file could hold."""
        if not self.injections:
            raise BoosterError("a booster needs at least one layer")
        for layer, injection in self.injections.items():
            if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
                raise BoosterError(f"layer {layer!r} is out of range: layers are counted from 0")
            for name, tensor in injection.tensors.items():
                if not torch.isfinite(tensor).all():
                    raise BoosterError(f"layers.{layer}.{name} holds NaN or infinity")
        sizes = {injection.hidden_size for injection in self.injections.values()}
        if len(sizes) > 1:
            raise BoosterError(f"layers of one booster must have one hidden size, not {sorted(sizes)}")
        object.__setattr__(self, "injections", dict(sorted(self.injections.items())))

    @classmethod
    def static(cls, vectors: Mapping[int, Tensor], provenance: Mapping[str, Any] | None = None) -> Booster:
        """A booster that adds `vectors[layer]` ([hidden]) to the output of each layer.

        Example:
            >>> Booster.static({8: torch.zeros(576)}).layers
            (8,)
        """
        return cls.of({layer: StaticInjection(vector) for layer, vector in vectors.items()}, provenance)

    @classmethod
    def of(cls, injections: Mapping[int, Injection], provenance: Mapping[str, Any] | None = None) -> Booster:
        """A booster with float32 copies of injections that may be on any device, in any dtype and still training."""

        def copied(injection: Injection) -> Injection:
            tensors = injection.tensors.items()
            return injection.with_tensors(
                {name: tensor.detach().to("cpu", torch.float32).clone() for name, tensor in tensors}
            )

        return cls({layer: copied(injection) for layer, injection in injections.items()}, dict(provenance or {}))

    @property
    def layers(self) -> tuple[int, ...]:
        """The changed layers, ascending."""
        return tuple(self.injections)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream this booster fits."""
        return next(iter(self.injections.values())).hidden_size

    @property
    def parameters(self) -> int:
        """Number of learned numbers."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their full name in the file, sorted by name."""
        named = {
            f"layers.{layer}.{name}": tensor
            for layer, injection in self.injections.items()
            for name, tensor in injection.tensors.items()
        }
        return dict(sorted(named.items()))

    @cached_property
    def sha256(self) -> str:
        """Identity of what the booster does: the same whatever its date, file or provenance."""
        digest = hashlib.sha256()
        for name, tensor in self.tensors.items():
            data = tensor.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4").tobytes()
            digest.update(f"{name}\0{list(tensor.shape)}\0".encode() + data)
        digest.update(_canonical(self._specs()).encode())
        return digest.hexdigest()

    @property
    def is_zero(self) -> bool:
        """Whether attaching it would leave the model unchanged."""
        return all(injection.is_zero for injection in self.injections.values())

    def scaled(self, strength: float) -> Booster:
        """This booster with every delta multiplied by `strength`; the provenance is kept."""
        _check_strength(strength)
        return Booster({layer: part.scaled(strength) for layer, part in self.injections.items()}, self.provenance)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the booster as safetensors, atomically: the old file stays whole until the new one is.

        Raises:
            BoosterError: The folder does not exist or cannot be written.
        """
        path = Path(path)
        provenance, hashes = _split_documents(self.provenance)
        header = {"format_version": FORMAT_VERSION, "injections": self._specs(), "provenance": provenance}
        if hashes:
            write_atomically(sidecar(path), "".join(f"{line}\n" for line in hashes).encode())
        tensors = {name: tensor.detach().to("cpu", torch.float32).clone() for name, tensor in self.tensors.items()}
        # One metadata key with sorted JSON: safetensors orders several keys at random, which would make equal
        # boosters differ as files.
        write_atomically(path, safetensors_bytes(tensors, metadata={METADATA_KEY: _canonical(header)}))

    def _specs(self) -> dict[str, dict[str, str]]:
        return {str(layer): injection.spec for layer, injection in self.injections.items()}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Booster:
        """Reads a booster file and checks all of it.

        Raises:
            BoosterError: With the file's name and the reason, whatever is wrong with it.
        """
        path = Path(path)
        try:
            return cls._load(path)
        except BoosterError as error:
            raise BoosterError(f"{path}: {error}") from None
        except (OSError, ValueError) as error:
            raise BoosterError(f"{path}: {_one_line(error)}") from None

    @classmethod
    def _load(cls, path: Path) -> Booster:
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
        return cls(_read_injections(header["injections"], tensors), _join_documents(header["provenance"], path))


def mix(parts: Sequence[tuple[Booster, float]]) -> Booster:
    """One booster that does what all `parts` do at once, each at its strength.

    The deltas are all taken from the same unsteered hidden state and added, layer by layer.

    Args:
        parts: Boosters of one model with their strengths.

    Raises:
        BoosterError: No parts, parts of different hidden size or base model, a strength that is not finite.
    """
    if not parts:
        raise BoosterError("nothing to mix")
    names = {name for booster, _ in parts if (name := base_model_key(booster.provenance))}
    if len(names) > 1:
        raise BoosterError(f"boosters of different models cannot be mixed: {', '.join(sorted(names))}")
    if len(sizes := {booster.hidden_size for booster, _ in parts}) > 1:
        raise BoosterError(f"boosters of different hidden size cannot be mixed: {sorted(sizes)}")
    injections: dict[int, Injection] = {}
    for booster, strength in parts:
        for layer, injection in booster.scaled(strength).injections.items():
            try:
                injections[layer] = injections[layer].plus(injection) if layer in injections else injection
            except ValueError as error:
                raise BoosterError(f"layer {layer}: {error}") from None
    provenance: dict[str, Any] = {"method": "mix", "parts": [], "tasks": []}
    hashes: set[str] = set()
    unlisted = 0
    for booster, strength in parts:
        own = dict(booster.provenance)
        own.pop("documents", None)
        hashes.update(documents.recorded_hashes(booster.provenance))
        unlisted += documents.unlisted(booster.provenance)
        provenance["parts"].append({"booster_sha256": booster.sha256, "strength": strength, "provenance": own})
        provenance["tasks"] += own.get("tasks", [])
    provenance["documents"] = {"count": len(hashes) + unlisted, "unlisted": unlisted, "hashes": sorted(hashes)}
    bases = [booster.provenance["base_model"] for booster, _ in parts if "base_model" in booster.provenance]
    if bases:
        provenance["base_model"] = bases[0]
    return Booster(injections, provenance)


def base_model_key(provenance: Mapping[str, Any]) -> str | None:
    """What tells base models apart in messages and comparisons: name and fingerprint, or None when unknown."""
    base = provenance.get("base_model")
    if not isinstance(base, Mapping):
        return None
    return f"{base.get('name', 'unknown')} ({str(base.get('fingerprint', 'unknown'))[:12]})"


def sidecar(path: Path) -> Path:
    """The file beside a booster that holds the hashes of very many training documents, one a line."""
    return path.with_name(f"{path.name}.documents.txt")


def _split_documents(provenance: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    documents = provenance.get("documents")
    if not isinstance(documents, Mapping) or len(documents.get("hashes", [])) <= DOCUMENTS_IN_FILE:
        return dict(provenance), []
    kept = {key: value for key, value in documents.items() if key != "hashes"}
    return {**provenance, "documents": {**kept, "sidecar": True}}, list(documents["hashes"])


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


def write_atomically(path: Path, data: bytes) -> None:
    """Writes `data` to `path` so that a reader, or a crash at any moment, sees the old file or the new one.

    Raises:
        BoosterError: The folder does not exist or cannot be written.
    """
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise BoosterError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        if temporary is not None:
            os.unlink(temporary)


def _read_header(text: str) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except json.JSONDecodeError as error:
        raise BoosterError(f"its 'aft' metadata is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise BoosterError("its 'aft' metadata is not a JSON object")
    if header.get("format_version") != FORMAT_VERSION:
        raise BoosterError(
            f"has format version {header.get('format_version')!r}; this aft_harness reads {FORMAT_VERSION}"
        )
    for key in ("injections", "provenance"):
        if not isinstance(header.get(key), dict):
            raise BoosterError(f"its 'aft' metadata lacks '{key}'")
    tasks = header["provenance"].get("tasks", [])
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise BoosterError("its provenance names 'tasks' that are not a list of objects")
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
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        claimed.update(prefix + name for name in own)
        for name, tensor in own.items():
            if tensor.dtype != torch.float32:
                raise BoosterError(f"{prefix}{name} is {tensor.dtype}, not float32")
        try:
            injections[int(key)] = KINDS[spec["kind"]](spec, own)
        except ValueError as error:
            raise BoosterError(f"layer {key}: {error}") from None
    if unknown := sorted(set(tensors) - claimed):
        raise BoosterError(f"holds unknown tensors: {', '.join(unknown[:3])}")
    return injections


def _check_strength(strength: float) -> None:
    if not math.isfinite(strength):
        raise BoosterError(f"strength {strength} is not a finite number")


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
