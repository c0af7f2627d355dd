"""GGUF files: a tiny random model of transformers with the tokenizer of the tests, and one of a few odd tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from torch import Tensor

WIDTH, LAYERS = 32, 4
"""Of the model of odd tensors."""

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ bos_token }}{{ message['content'] }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
)


def write_gguf(path: Path, model: Any, tokenizer: Any, *, add_bos: bool = False, architecture: str = "llama") -> Path:
    """Writes a small Llama in float32, with a byte-level BPE."""
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_tokenizer(writer, tokenizer, config.vocab_size, add_bos)
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"].numpy())
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        for name, ours in _NAMES.items():
            weight = state[f"model.layers.{layer}.{name}.weight"]
            if ours in heads:
                weight = _interleaved(weight, heads[ours])
            writer.add_tensor(f"blk.{layer}.{ours}.weight", weight.numpy().copy())
    writer.add_tensor("output_norm.weight", state["model.norm.weight"].numpy())
    writer.add_tensor("output.weight", state["lm_head.weight"].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """The rows of a rotated projection in llama.cpp's order."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns).contiguous()


def _add_tokenizer(writer: Any, tokenizer: Any, size: int, add_bos: bool) -> None:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    names = {index: name for name, index in model["vocab"].items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([names.get(index, f"[unused{index}]") for index in range(size)])
    writer.add_token_types([3 if index < 3 else 1 if index in names else 5 for index in range(size)])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(add_bos)
    writer.add_chat_template(CHAT_TEMPLATE)


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
        add: Any = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(key.replace("__", "."), value)
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
