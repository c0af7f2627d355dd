"""Boosters and small GGUF models that tests of exports share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from aft_harness.boosters.booster import Booster

WIDTH, LAYERS = 32, 4
BASE = {"name": "m/n", "fingerprint": "ab" * 32, "architecture": "LlamaForCausalLM", "layers": 4, "hidden_size": WIDTH}


def booster(*layers: int, width: int = WIDTH, seed: int = 0, base: Any = BASE) -> Booster:
    """Vectors of seeded noise at some layers."""
    generator = torch.Generator().manual_seed(seed)
    vectors = {layer: torch.randn(width, generator=generator) for layer in layers}
    return Booster.static(vectors, {"base_model": base} if base else None)


def vectors_of(made: Booster) -> dict[int, torch.Tensor]:
    """What a static booster adds, by layer."""
    return {layer: part.tensors["vector"] for layer, part in made.injections.items()}


def gguf_model(
    path: Path,
    architecture: str = "llama",
    biases: dict[int, np.ndarray] | None = None,
    experts: bool = False,
    alignment: int = 32,
    **metadata: Any,
) -> Path:
    """Writes a GGUF model of a few tensors, some of them quantised, with metadata of every kind."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    for key, value in metadata.items():
        kinds = {str: "STRING", int: "UINT32", float: "FLOAT32"}
        writer.add_key_value(key.replace("__", "."), value, gguf.GGUFValueType[kinds[type(value)]])
    writer.add_token_list(["<s>", "é", "", "\n", "token"] * 20)
    writer.add_token_scores([0.5, -1.25, float("-inf"), 0.0, 1e-30] * 20)
    writer.add_token_types([1, 2, 3, 6, 1] * 20)
    writer.add_array("test.flags", [True, False, True])
    writer.add_float64("test.double", 0.1)
    writer.add_int8("test.small", -3)
    writer.add_tensor("token_embd.weight", rng.standard_normal((100, WIDTH), dtype=np.float32))
    for layer in range(LAYERS):
        weight = rng.standard_normal((WIDTH, 64), dtype=np.float32)
        name = f"blk.{layer}.ffn_down{'_exps' if experts else ''}.weight"
        if layer % 2:
            packed = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, weight.astype(np.float16))
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", np.ones(WIDTH, dtype=np.float32))
        if biases and layer in biases:
            writer.add_tensor(f"blk.{layer}.ffn_down.bias", biases[layer])
    writer.add_tensor("output_norm.weight", np.ones(3, dtype=np.float32))  # ends between two multiples of the alignment
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
