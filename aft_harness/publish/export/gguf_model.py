"""The target `gguf-model`: a user's GGUF model with the booster in it, as biases of the layers' last linear.

Knows which architectures llama.cpp gives such a bias, and how it uses it. All that the model's file holds is copied
byte for byte: quantised weights stay as they are, and metadata of any kind. Only the number of tensors and of metadata
entries in the header changes, and biases that are there already.
"""

from __future__ import annotations

import mmap
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from aft_harness.engine.gguf_file import (
    F32,
    GgufHeader,
    TensorEntry,
    checked_offsets,
    metadata_entry,
    read_header,
    tensor_entry,
    written_header,
)
from aft_harness.errors import AftError, ExportError, FileError
from aft_harness.files import check_regular, exists
from aft_harness.publish.export.origin import entries
from aft_harness.publish.export.target import Exported, Option, Order, Target
from aft_harness.text import printable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

PLAIN = frozenset(("bloom", "gpt2", "gptneox", "llama", "nemotron", "phi2", "starcoder", "starcoder2"))
"""Architectures whose `ffn_down.bias` llama.cpp adds to the residual stream as it is. `llama` is also what it calls
Mistral, SmolLM2, TinyLlama and other models of Llama's form. Each was run, as a small random model, before it was put
here: others that llama.cpp's source gives such a bias are refused until somebody runs one."""

SCALED = frozenset(("granite",))
"""Those that multiply the output of the MLP, bias included, by `residual_scale` first."""

REASONS = {
    "falcon": "llama.cpp gives Falcon no bias",
    "gemma": "llama.cpp gives Gemma no bias",
    "gemma2": "Gemma 2 normalises the output of the MLP, so that a bias there is not a vector added to the layer",
    "gemma3": "Gemma 3 normalises the output of the MLP, so that a bias there is not a vector added to the layer",
    "olmo2": "OLMo 2 normalises the output of the MLP, so that a bias there is not a vector added to the layer",
    "phi3": "llama.cpp gives Phi-3 no bias",
    "qwen2": "llama.cpp gives the MLP of Qwen 2 no bias",
    "qwen3": "llama.cpp gives the MLP of Qwen 3 no bias",
    "stablelm": "llama.cpp gives the MLP of StableLM no bias",
}

WAY_OUT = "use the target gguf instead: a control vector, which llama.cpp adds to any model (not at layer 0)"

_CHUNK = 2**24


@dataclass(frozen=True)
class ModelFile:
    """A model's GGUF file, read as far as its header.

    Attributes:
        path: Of the file.
        size: In bytes.
        header: What stands in front of its data.
    """

    path: Path
    size: int
    header: GgufHeader

    @classmethod
    def read(cls, path: Path) -> ModelFile:
        """Reads the header and checks that all tensors are there.

        Raises:
            ExportError: It is no GGUF file, damaged, or one part of several.
        """
        try:
            size = check_regular(path, "GGUF file")
            if not size:
                raise FileError("is empty")
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                header = read_header(mapped)
            if (parts := header.number("split.count") or 1) > 1:
                raise ExportError(
                    f"is one of {parts} parts; join them first: llama-gguf-split --merge FIRST-PART.gguf WHOLE.gguf"
                )
            checked_offsets(header, size)
        except (AftError, OSError) as error:
            raise ExportError(f"{path}: {error}") from None
        return cls(path, size, header)

    @property
    def architecture(self) -> str:
        """What llama.cpp calls the kind of model."""
        return self.header.architecture

    def number(self, key: str) -> int | None:
        """A whole number of the metadata of this architecture, such as `embedding_length`."""
        return self.header.number(f"{self.architecture}.{key}")

    @property
    def layers(self) -> int | None:
        """Decoder layers, without those that only predict further tokens."""
        blocks = self.number("block_count")
        return None if blocks is None else blocks - (self.number("nextn_predict_layers") or 0)

    def check_fits(self, width: int, layers: tuple[int, ...], recorded: int = 0) -> None:
        """Checks that a booster is of this model's shape.

        Args:
            width: Of the booster's vectors.
            layers: Those that it changes.
            recorded: Layers of the model that it was made for; 0 where unknown.

        Raises:
            ExportError: It is not.
        """
        model_width, model_layers = self.number("embedding_length"), self.layers
        if model_width is None or model_layers is None:
            raise ExportError(
                f"{self.path}: does not say how wide and deep the model is; is it a language model's file?"
            )
        if model_width != width:
            raise ExportError(f"{self.path}: has a hidden size of {model_width}, the booster one of {width}")
        if layers[-1] >= model_layers or recorded not in (0, model_layers):
            asked = f"is for a model of {recorded}" if recorded else f"changes layer {layers[-1]}"
            raise ExportError(f"{self.path}: has {model_layers} layers; the booster {asked}")


def write(order: Order, *, model: str) -> Exported:
    """Writes the file; see `TARGET`."""
    vectors, base = order.vectors, order.booster.provenance.base_model
    source = ModelFile.read(Path(model))
    source.check_fits(order.booster.hidden_size, tuple(vectors), base.layers if base else 0)
    if exists(order.output) and os.path.samefile(order.output, source.path):
        raise ExportError(f"{order.output}: is the model itself; give another name")
    write_steered(source, vectors, entries(order), order.place)
    file = shlex.quote(str(order.output))
    use = (
        f"llama-server -m {file}\n"
        f"# Ollama:\necho {shlex.quote(f'FROM ./{order.output.name}')} > Modelfile && ollama create NAME -f Modelfile\n"
        f"# LM Studio:\nlms import {file}"
    )
    return Exported(order.output, use, "The same prompt at temperature 0 is answered otherwise than by the original.")


def bias_name(layer: int) -> str:
    """llama.cpp's name of the bias of a layer's last linear."""
    return f"blk.{layer}.ffn_down.bias"


def write_steered(
    model: ModelFile, vectors: Mapping[int, Tensor], origin: Mapping[str, str | float], output: Path
) -> None:
    """Writes the model with a vector added to the output of each layer.

    Args:
        model: What is copied.
        vectors: By layer; [hidden].
        origin: Metadata to add.
        output: The file to write.

    Raises:
        ExportError: The architecture has no such bias, or the file holds a booster already.
        OSError: The file cannot be read or written.
    """
    import numpy as np

    header = model.header
    factor = _factor(model)
    if steered := header.text("aft.booster_sha256"):
        raise ExportError(
            f"{model.path}: holds the booster {printable(steered)[:12]} already; export onto the original model"
        )
    present: list[tuple[TensorEntry, np.ndarray]] = []
    added: list[tuple[TensorEntry, np.ndarray]] = []
    place = _end(model)
    for layer, vector in sorted(vectors.items()):
        values = (vector.detach().cpu().double().numpy() / factor).astype("<f4")
        entry = _bias(model, layer, len(values))
        if entry is None:
            added.append((TensorEntry(bias_name(layer), (len(values),), F32, place), values))
            place = header.padded(place + values.nbytes)
        else:
            present.append((entry, values))
    pairs = [metadata_entry(key, value) for key, value in origin.items()]
    head = written_header(
        header.raw_metadata + b"".join(pairs),
        header.keys + len(pairs),
        header.raw_tensors + b"".join(tensor_entry(entry) for entry, _ in added),
        len(header.tensors) + len(added),
        header.alignment,
        header.version,
    )
    with model.path.open("rb") as source, output.open("wb") as target:
        target.write(head)
        _copy(source, target, header.data_start, _end(model))
        for entry, values in added:
            _at(target, len(head) + entry.offset, values.tobytes())
        for entry, values in present:
            source.seek(header.data_start + entry.offset)
            bias = np.frombuffer(source.read(values.nbytes), dtype="<f4")
            _at(target, len(head) + entry.offset, (bias + values).astype("<f4").tobytes())
        target.seek(0, 2)
        target.write(b"\0" * (len(head) + place - target.tell()))


def _factor(model: ModelFile) -> float:
    """What the bias is multiplied by before it is added.

    Raises:
        ExportError: The architecture cannot say a vector by such a bias.
    """
    name = model.architecture
    if name in PLAIN:
        return 1.0
    if name in SCALED:
        scale = model.header.metadata.get(f"{name}.residual_scale")
        if not isinstance(scale, float) or not 0 < abs(scale) < float("inf"):
            raise ExportError(
                f"{model.path}: lacks {name}.residual_scale, which the bias has to be divided by; {WAY_OUT}"
            )
        return scale
    reason = REASONS.get(
        name, f"of the architecture {printable(name) or 'unknown'} it is not known that llama.cpp gives it one"
    )
    raise ExportError(f"{model.path}: a booster cannot be a bias of this model: {reason}; {WAY_OUT}")


def _bias(model: ModelFile, layer: int, width: int) -> TensorEntry | None:
    """The bias that a layer has already.

    Raises:
        ExportError: The layer is a mixture of experts, or what it has is of another form.
    """
    tensors = model.header.tensors
    weight = tensors.get(f"blk.{layer}.ffn_down.weight")
    if weight is None or weight.shape[1:] != (width,):
        expert = any(re.match(rf"blk\.{layer}\.ffn_(down|gate_inp)", name) for name in tensors)
        reason = "is a mixture of experts, which has no single last linear" if expert else "has no ffn_down"
        raise ExportError(f"{model.path}: layer {layer} {reason}; {WAY_OUT}")
    if f"blk.{layer}.ffn_down.scale" in tensors:
        raise ExportError(f"{model.path}: layer {layer} scales the output of its last linear, bias included; {WAY_OUT}")
    entry = tensors.get(bias_name(layer))
    if entry is not None and (entry.type != F32 or entry.shape != (width,)):
        raise ExportError(f"{model.path}: {entry.name} is not a vector of float32; {WAY_OUT}")
    return entry


def _end(model: ModelFile) -> int:
    """Where a further tensor begins, from the start of the data."""
    if not model.header.tensors:
        return 0
    last = list(model.header.tensors.values())[-1]
    # Of a type that is not known here the size is not, either: then the last tensor ends where the file does.
    size = last.size if last.size is not None else model.size - model.header.data_start - last.offset
    return model.header.padded(last.offset + size)


def _copy(source: IO[bytes], target: IO[bytes], start: int, length: int) -> None:
    source.seek(start)
    while length > 0 and (data := source.read(min(_CHUNK, length))):
        target.write(data)
        length -= len(data)


def _at(target: IO[bytes], place: int, data: bytes) -> None:
    target.seek(place)
    target.write(data)


TARGET = Target(
    name="gguf-model",
    summary="Your GGUF model with the booster in it: for Ollama, LM Studio and llama.cpp.",
    write=write,
    shape="file",
    description="The model is copied, and the booster added as biases; quantised weights stay as they are, and no "
    "option is needed to run it. Possible for the architectures that llama.cpp gives such a bias: "
    f"{', '.join(sorted(PLAIN | SCALED))} (llama is also Mistral, SmolLM2 and others of Llama's form).",
    suffix=".gguf",
    options=(Option("model", "The GGUF file that the booster is written into; the file itself stays as it is.", True),),
)
