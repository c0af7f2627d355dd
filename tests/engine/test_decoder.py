from __future__ import annotations

from typing import Any

import pytest
from engine_cases import ARCHITECTURES
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from aft_harness.engine.decoder import check_causal, decoder_layers
from aft_harness.errors import ModelError


def test_layers_are_found_under_lora(tiny_model: Any) -> None:
    model = tiny_model("llama")
    layers = decoder_layers(model)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    assert list(decoder_layers(wrapped)) == list(layers)


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
