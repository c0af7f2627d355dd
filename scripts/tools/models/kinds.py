"""Small random models of many kinds: four layers, and as narrow as each kind allows.

Knows configurations of transformers. Knows nothing of boosters.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 320
LAYERS = 4

KINDS: dict[str, dict[str, Any]] = {
    "afmoe": {},
    "apertus": {},
    "arcee": {},
    "bamba": {"attn_layer_indices": [1, 3], "attn_rotary_emb": 8},
    "biogpt": {},
    "bitnet": {},
    "bloom": {},
    "codegen": {"rotary_dim": 8},
    "cohere": {},
    "cohere2": {},
    "ctrl": {},
    "cwm": {},
    "deepseek_v3": {"num_key_value_heads": 4},
    "diffllama": {},
    "doge": {},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "head_dim": 8},
    "ernie4_5": {},
    "ernie4_5_moe": {},
    "exaone4": {},
    "exaone_moe": {},
    "falcon": {"alibi": False},
    "falcon_h1": {},
    "falcon_mamba": {},
    "flex_olmo": {},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 8},
    "gemma3_text": {"query_pre_attn_scalar": 8},
    "gemma4_text": {},
    "glm": {},
    "glm4": {},
    "glm4_moe": {},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 16},
    "gpt_neox": {},
    "gpt_oss": {},
    "gptj": {"rotary_dim": 8},
    "granite": {},
    "granite_swa": {},
    "granitemoe": {},
    "granitemoeshared": {},
    "helium": {},
    "hunyuan_v1_dense": {"head_dim": 8},
    "internlm3": {},
    "jais2": {},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "jetmoe": {},
    "lfm2": {},
    "llama": {},
    "llama4_text": {},
    "mamba": {},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "minimax": {},
    "minimax_m2": {},
    "ministral": {"head_dim": 8},
    "ministral3": {},
    "mistral": {},
    "mixtral": {},
    "modernbert-decoder": {},
    "mpt": {"d_model": 32, "n_heads": 4},
    "nanochat": {},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "nemotron_h": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {},
    "olmo_hybrid": {},
    "olmoe": {},
    "openai-gpt": {},
    "opt": {"word_embed_proj_dim": 32},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": {},
    "qwen2": {},
    "qwen2_moe": {},
    "qwen3": {},
    "qwen3_5_moe_text": {},
    "qwen3_5_text": {},
    "qwen3_moe": {},
    "qwen3_next": {},
    "recurrent_gemma": {"lru_width": 32, "block_types": ["recurrent", "recurrent", "attention", "recurrent"]},
    "rwkv": {},
    "seed_oss": {},
    "smollm3": {},
    "solar_open": {},
    "stablelm": {},
    "starcoder2": {},
    "vaultgemma": {},
    "xglm": {"d_model": 32, "attention_heads": 4, "ffn_dim": 64},
}
"""By the `model_type` of transformers: what a kind needs beside the sizes that all have."""

ROADMAP: dict[str, dict[str, Any]] = {
    "TinyLlama-1.1B": {
        "model_type": "llama",
        "num_hidden_layers": 22,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
    },
    "Qwen1.5-1.8B": {
        "model_type": "qwen2",
        "num_hidden_layers": 24,
        "hidden_size": 2048,
        "intermediate_size": 5504,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
    },
    "gemma-2b": {
        "model_type": "gemma",
        "num_hidden_layers": 18,
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "max_position_embeddings": 8192,
    },
    "phi-2": {
        "model_type": "phi",
        "num_hidden_layers": 32,
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "partial_rotary_factor": 0.4,
        "max_position_embeddings": 2048,
    },
    "Llama-2-7B": {
        "model_type": "llama",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
    },
    "Mistral-7B-v0.1": {
        "model_type": "mistral",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
        "max_position_embeddings": 32768,
    },
}
"""Published configurations, in what is not the default of their kind."""

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size": 32,
    "hidden_size_per_layer_input": 8,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 8,
    "intermediate_size": 64,
    "ffn_dim": 64,
    "n_inner": 64,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_ssm": 64,
    "mamba_n_groups": 1,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "state_size": 8,
    "max_position_embeddings": 256,
    "sliding_window": 16,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Sizes, for kinds that have them. The window is shorter than the texts, so that it shows."""


_DERIVED = ("layer_types", "layers_block_type")
"""Where these follow from other settings, they are not set."""


def small(kind: str) -> PreTrainedModel:
    """A model of a kind, in float32, with the same weights at every call."""
    plain = AutoConfig.for_model(kind)
    names = {*plain.to_dict(), *plain.attribute_map}
    sizes = {name: value for name, value in _SIZES.items() if name in names and _is_set(plain, name)}
    types = getattr(plain, "layer_types", None)
    if types and not any(isinstance(getattr(type(plain), name, None), property) for name in _DERIVED):
        sizes["layer_types"] = _shortened(list(types))
    config = AutoConfig.for_model(kind, **{**sizes, **KINDS.get(kind, {})})
    return _random(config)


def cut(name: str) -> PreTrainedModel:
    """A model of the roadmap, as wide as published, with two layers and a small vocabulary."""
    few = {"num_hidden_layers": 2, "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return _random(AutoConfig.for_model(**{**ROADMAP[name], **few}))


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that any text can be encoded with."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", "<bos>", "<eos>", *alphabet]
    backend = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", model_max_length=256
    )


def _is_set(config: PreTrainedConfig, name: str) -> bool:
    """Whether a kind sets a size, and the same one for all layers."""
    try:
        return getattr(config, name, None) is not None
    except (AttributeError, RuntimeError):  # the latter where layers differ
        return False


def _shortened(types: list[str]) -> list[str]:
    distinct = list(dict.fromkeys(types))
    return (distinct * LAYERS)[:LAYERS] if len(distinct) <= LAYERS else types[:LAYERS]


def _random(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for _, parameter in sorted(model.named_parameters()):
                if not torch.isfinite(parameter).all() or (parameter.dim() > 1 and not parameter.any()):
                    parameter.normal_(0.0, 0.2)  # what a kind leaves empty when it is not loaded
    return model.eval()
