"""The target `gguf`: a control vector, which llama.cpp adds to the residual stream of a model as it is.

Knows llama.cpp's control vectors: `direction.N` is added to the output of decoder layer N, counted from 0.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from aft_harness.engine.gguf_file import F32, TensorEntry, metadata_entry, tensor_entry, written_header
from aft_harness.errors import ExportError
from aft_harness.publish.export.gguf_model import ModelFile
from aft_harness.publish.export.origin import entries
from aft_harness.publish.export.target import Exported, Option, Order, Target

if TYPE_CHECKING:
    from torch import Tensor

    from aft_harness.boosters.model_identity import ModelIdentity

ALIGNMENT = 32

HINTS = {
    "CohereForCausalLM": "command-r",
    "FalconForCausalLM": "falcon",
    "GPT2LMHeadModel": "gpt2",
    "GPTBigCodeForCausalLM": "starcoder",
    "GPTNeoXForCausalLM": "gptneox",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "GemmaForCausalLM": "gemma",
    "GraniteForCausalLM": "granite",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "MixtralForCausalLM": "llama",
    "MptForCausalLM": "mpt",
    "Olmo2ForCausalLM": "olmo2",
    "OlmoForCausalLM": "olmo",
    "Phi3ForCausalLM": "phi3",
    "PhiForCausalLM": "phi2",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "SmolLM3ForCausalLM": "smollm3",
    "StableLmForCausalLM": "stablelm",
    "Starcoder2ForCausalLM": "starcoder2",
}
"""What llama.cpp calls the architectures of transformers; of others the name of the class is written."""


def write(order: Order, *, model: str | None) -> Exported:
    """Writes the file; see `TARGET`."""
    vectors = order.vectors
    if 0 in vectors:
        raise ExportError(
            "llama.cpp's control vectors cannot steer layer 0; write the booster into the model instead (aft export "
            "gguf-model, or checkpoint)"
        )
    layers, hint = _described(model, vectors, order.booster.provenance.base_model)
    if max(vectors) >= layers:
        raise ExportError(f"layer {max(vectors)} is out of range: the model has {layers} layers")
    order.place.write_bytes(control_vector(vectors, layers, hint, entries(order)))
    file, named = shlex.quote(str(order.output)), shlex.quote(str(model or "MODEL.gguf"))
    use = (
        f"llama-server -m {named} --control-vector {file}\n"
        "# at half the strength, and with a second one:\n"
        f"llama-server -m {named} --control-vector-scaled {file}:0.5,OTHER.gguf:1"
    )
    return Exported(order.output, use, _CHECK)


def _described(model: str | None, vectors: Mapping[int, Tensor], base: ModelIdentity | None) -> tuple[int, str]:
    """How many layers the model has, and what llama.cpp calls its architecture.

    Raises:
        ExportError: The model does not fit, or neither it nor the booster says how many layers there are.
    """
    recorded = base.layers if base else 0
    if model is not None:
        file = ModelFile.read(Path(model))
        file.check_fits(len(next(iter(vectors.values()))), tuple(vectors), recorded)
        assert file.layers is not None
        return file.layers, file.architecture
    if base is None or not recorded:
        raise ExportError(
            "the booster does not say how many layers its model has, and llama.cpp serves the unsteered model where a "
            "control vector does not fit: name the model's GGUF file (--model MODEL.gguf)"
        )
    return recorded, HINTS.get(base.architecture, base.architecture.removesuffix("ForCausalLM").lower() or "unknown")


def control_vector(vectors: Mapping[int, Tensor], layers: int, hint: str, origin: Mapping[str, str | float]) -> bytes:
    """The bytes of a control vector's file.

    Args:
        vectors: What is added to the output of each layer; [hidden]. Never of layer 0, which llama.cpp cannot steer.
        layers: Decoder layers of the model.
        hint: What llama.cpp calls the architecture of the model; nothing depends on it.
        origin: Further metadata, which llama.cpp passes over.
    """
    assert 0 not in vectors
    entries, parts, place = [], [], 0
    for layer, vector in sorted(vectors.items()):
        data = vector.detach().cpu().numpy().astype("<f4").tobytes()
        entries.append(tensor_entry(TensorEntry(f"direction.{layer}", (len(vector),), F32, place)))
        parts.append(data.ljust(-(-len(data) // ALIGNMENT) * ALIGNMENT, b"\0"))
        place += len(parts[-1])
    metadata = {
        "general.architecture": "controlvector",
        "controlvector.model_hint": hint,
        "controlvector.layer_count": layers,
        **origin,
    }
    pairs = [metadata_entry(key, value) for key, value in metadata.items()]
    header = written_header(b"".join(pairs), len(pairs), b"".join(entries), len(entries), ALIGNMENT)
    return header + b"".join(parts)


_CHECK = (
    "The same prompt at temperature 0 answers otherwise with the option than without. Where llama.cpp says `control "
    "vector\nn_embd does not match model`, or that `direction` tensors are invalid, the model runs without the vector."
)

TARGET = Target(
    name="gguf",
    summary="A control vector for llama.cpp, which adds it to a GGUF model as it is.",
    write=write,
    shape="file",
    description="llama.cpp cannot steer layer 0 in this way; for Ollama and LM Studio, which take no control vectors, "
    "see the target gguf-model.",
    suffix=".gguf",
    options=(Option("model", "The GGUF file that it is for, which it is then checked to fit."),),
)
