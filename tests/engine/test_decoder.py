from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_cases import ARCHITECTURES
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertForMaskedLM

from aft_harness.engine.decoder import check_causal, decoder_layers, layer_settings
from aft_harness.errors import ModelError


def test_layers_are_found_under_lora(tiny_model: Any) -> None:
    model = tiny_model("llama")
    layers = decoder_layers(model)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    assert list(decoder_layers(wrapped)) == list(layers)


_SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    ("kind", "settings", "path"),
    [
        ("llama4_text", {"num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 8}, "model.layers"),
        ("modernbert-decoder", {"num_hidden_layers": 3, "intermediate_size": 64}, "model.layers"),
        ("bert", {"num_hidden_layers": 3, "intermediate_size": 64, "is_decoder": True}, "bert.encoder.layer"),
        # A decoder alone, of a configuration that counts the encoder's layers.
        ("bart", {"d_model": 32, "encoder_layers": 2, "decoder_layers": 3}, "model.decoder.layers"),
    ],
)
def test_layers_are_found_where_get_decoder_does_not_lead(kind: str, settings: dict[str, Any], path: str) -> None:
    known = {**_SMALL, **settings}
    if kind == "llama4_text":
        known |= {"intermediate_size": 32, "intermediate_size_mlp": 32, "num_local_experts": 2}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **known))
    assert decoder_layers(model) is model.get_submodule(path) and len(decoder_layers(model)) == 3


def test_settings_may_differ_among_layers() -> None:
    same = AutoConfig.for_model("gemma3_text", sliding_window=16)
    assert layer_settings(same, "sliding_window") == {16} and layer_settings(same, "head_dim") == {256}
    assert layer_settings(same, "no_such_setting") == set()
    differing = AutoConfig.for_model("gemma4_text", head_dim=32, global_head_dim=64)
    with pytest.raises(RuntimeError):
        _ = differing.head_dim
    assert layer_settings(differing, "head_dim") == {32, 64}


def test_an_override_names_the_layers(tiny_model: Any) -> None:
    model = tiny_model("gpt2")
    assert decoder_layers(model, "transformer.h") is model.transformer.h
    with pytest.raises(ModelError, match="no such module"):
        decoder_layers(model, "model.layers")
    with pytest.raises(ModelError, match="not a list of layers"):
        decoder_layers(model, "transformer.wte")


def test_ambiguous_layers_are_an_error_that_names_the_override(tiny_model: Any) -> None:
    model = tiny_model("llama")
    model.model.others = nn.ModuleList(nn.Identity() for _ in range(4))
    with pytest.raises(ModelError, match=r"2 lists of 4 layers.*layers_path="):
        decoder_layers(model)
    with pytest.raises(ModelError, match="layers_path"):
        decoder_layers(nn.Linear(2, 2))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_causal_models_are_causal(tiny_model: Any, architecture: str) -> None:
    check_causal(tiny_model(architecture))


def test_a_masked_language_model_is_not() -> None:
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.5,
    )
    with pytest.raises(ModelError, match="not a causal language model"):
        check_causal(BertForMaskedLM(config).eval())
