"""A checkpoint folder of Hugging Face as files: which tensors it has, where each one's bytes are, what else there is.

Knows the layout of such folders and the headers of safetensors files; no weight is read. Knows no models or boosters.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from aft_harness.engine.identity import MARKER
from aft_harness.errors import FileError, ModelError
from aft_harness.files import check_regular, read_regular
from aft_harness.publish.export.target import RECORD
from aft_harness.text import reason

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_HEADER_BYTES = 100_000_000  # what the safetensors library allows
_JSON_BYTES = 200_000_000
_COPIED_BYTES = 1_000_000_000
_COPIED = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "LICENSE*", "NOTICE*", "USE_POLICY*")
_WANTED = (*_COPIED, "*.safetensors")
# What is written anew, and what is true of the base alone.
_NOT_COPIED = {CONFIG, INDEX, MARKER, RECORD, "adapter_config.json", "pytorch_model.bin.index.json"}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        file: The name of the file in its folder.
        dtype: As safetensors names it, such as `BF16`.
        shape: Its shape.
        start: Where its bytes begin in the file.
        size: How many there are.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Base:
    """A model's folder.

    Attributes:
        folder: The folder; of a model on the hub, that of the cache.
        label: What the user calls the model, for messages.
    """

    folder: Path
    label: str

    @classmethod
    def of(cls, model: str, revision: str | None = None) -> Base:
        """The folder of a model: itself, or that of the hub's cache, fetched if need be.

        Args:
            model: A folder or a hub id.
            revision: Of a model on the hub; its main branch by default.

        Raises:
            ModelError: There is none.
        """
        if Path(model).is_dir():
            return cls(Path(model), model)
        if Path(model).is_file():
            raise ModelError(f"{model}: not a folder but a file; give a checkpoint folder or a hub id")
        from huggingface_hub import snapshot_download

        try:
            folder = snapshot_download(
                model, revision=revision, allow_patterns=list(_WANTED), ignore_patterns=["*/*", "consolidated*"]
            )
        except Exception as error:
            why = reason(error, sentence=True)
            raise ModelError(
                f"{model}: no such folder, and it cannot be had from the hub ({type(error).__name__}: {why})"
            ) from None
        return cls(Path(folder), model)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration as it is written.

        Raises:
            ModelError: There is none, or none that can be read.
        """
        return self._json(CONFIG)

    @cached_property
    def tensors(self) -> dict[str, Stored]:
        """Every tensor by its name.

        Raises:
            ModelError: There are no safetensors files, or they cannot be read.
        """
        files = self._shards()
        found = {name: stored for file in dict.fromkeys(files.values()) for name, stored in self._header(file)}
        if lacking := sorted(set(files) - set(found) - {""}):
            raise ModelError(f"{self.label}: {files[lacking[0]]} lacks the tensor {lacking[0]}, which {INDEX} lists")
        return found

    @property
    def shards(self) -> list[str]:
        """The names of the files that hold weights."""
        return list(dict.fromkeys(stored.file for stored in self.tensors.values()))

    @property
    def parameters(self) -> int:
        """How many numbers the tensors hold."""
        return sum(math.prod(stored.shape) for stored in self.tensors.values())

    @property
    def others(self) -> list[Path]:
        """The small files beside weights and configuration: tokenizer, chat templates, generation settings, licence."""
        found = {path for pattern in _COPIED for path in self.folder.glob(pattern)}
        found |= set(self.folder.glob("additional_chat_templates/*.jinja"))
        return sorted(
            path
            for path in found
            if path.name not in _NOT_COPIED and path.is_file() and path.stat().st_size <= _COPIED_BYTES
        )

    def name_of(self, parameter: str, prefix: str) -> str:
        """What a parameter of the model is called in the files, which may lack the model's prefix.

        Raises:
            ModelError: No tensor bears that name.
        """
        for name in (parameter, parameter.removeprefix(f"{prefix}.")):
            if name in self.tensors:
                return name
        raise ModelError(
            f"{self.label}: no tensor is called {parameter}: it is quantised, or not in transformers' form"
        )

    def _shards(self) -> Mapping[str, str]:
        """The files that hold weights, by the tensors that they are said to hold."""
        if (self.folder / SINGLE).is_file():
            return {"": SINGLE}
        if not (self.folder / INDEX).is_file():
            raise ModelError(
                f"{self.label}: has neither {SINGLE} nor {INDEX}; load the model with transformers and save it with "
                "save_pretrained, which writes them"
            )
        files = self._json(INDEX).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(file, str) and _plain(file) for file in files.values()):
            raise ModelError(f"{self.label}: {INDEX} has no weight_map from tensors to files of the folder")
        return files

    def _json(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads(read_regular(self.folder / name, _JSON_BYTES))
        except FileError as error:
            raise ModelError(f"{self.label}: {name}: {error}") from None
        except (ValueError, RecursionError):
            raise ModelError(f"{self.label}: {name} is not JSON") from None
        if not isinstance(found, dict):
            raise ModelError(f"{self.label}: {name} is not a JSON object")
        return found

    def _header(self, file: str) -> Iterator[tuple[str, Stored]]:
        try:
            size = check_regular(self.folder / file)
            with open(self.folder / file, "rb") as handle:
                (length,) = struct.unpack("<Q", handle.read(8))
                if length > min(_HEADER_BYTES, size):
                    raise ValueError
                header = json.loads(handle.read(length))
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                start, end = entry["data_offsets"]
                if not 0 <= start <= end <= size - 8 - length:
                    raise ValueError
                yield name, Stored(file, entry["dtype"], tuple(entry["shape"]), 8 + length + start, end - start)
        except FileError as error:
            raise ModelError(f"{self.label}: {file}: {error}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError):
            raise ModelError(f"{self.label}: {file} is not a safetensors file, or not a whole one") from None


def _plain(name: str) -> bool:
    """Whether a name is that of a file in the folder itself."""
    return bool(name) and Path(name).name == name and name not in (".", "..")
