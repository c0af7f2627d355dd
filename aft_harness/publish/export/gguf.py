"""The target `gguf`: a control vector, which llama.cpp adds to the residual stream of a model as it is.

Knows llama.cpp's control vectors: `direction.N` is added to the output of decoder layer N, counted from 0.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from aft_harness.publish.gguf_file import F32, TensorEntry, metadata_entry, tensor_entry, written_header

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


def control_vector(vectors: Mapping[int, Tensor], layers: int, hint: str, origin: Mapping[str, str | float]) -> bytes:
    """The bytes of a control vector.

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
