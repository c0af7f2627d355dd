from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import make_tiny_model
from torch import nn
from transformers import AutoConfig, LlamaConfig, MambaConfig

from aft_harness.errors import ExportError
from aft_harness.publish.export.forms import AS_LLAMA, NATIVE, as_llama, fitting_form
from aft_harness.publish.export.miniature import logits, miniature, with_weights_of
from aft_harness.publish.export.site import biased, find_site

PLACES = {
    "bloom": "mlp.dense_4h_to_h",
    "falcon": "mlp.dense_4h_to_h",
    "gemma": "mlp.down_proj",
    "gpt2": "mlp.c_proj",
    "gpt_neox": "mlp.dense_4h_to_h",
    "gptj": "mlp.fc_out",
    "granite": "mlp.down_proj",
    "llama": "mlp.down_proj",
    "mamba": "mixer.out_proj",
    "opt": "fc2",
    "phi": "mlp.fc2",
    "phi3": "mlp.down_proj",
    "qwen3": "mlp.down_proj",
}


def config(architecture: str, **settings: Any) -> Any:
    return make_tiny_model(architecture, **settings).config


@pytest.mark.parametrize("architecture", PLACES)
def test_the_last_linear_layer_is_found(architecture: str) -> None:
    settings = {"pad_token_id": 0} if architecture == "phi3" else {}
    site = find_site(config(architecture, **settings), [1, 3])
    assert site.name == PLACES[architecture]
    assert site.factor == (0.22 if architecture == "granite" else 1.0)
    assert site.is_linear == (architecture != "gpt2")


def test_a_real_size_is_measured_in_a_moment() -> None:
    """Nothing of the size of the model is made: the first would have 70 billion parameters."""
    large = LlamaConfig(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64)
    assert fitting_form(large, list(range(80))).name == "mlp_bias"
    assert find_site(MambaConfig(hidden_size=2560, num_hidden_layers=4), [0, 3]).name == "mixer.out_proj"


def test_layers_that_differ_are_found_out() -> None:
    """The first layers of such a model are dense; mixtures of experts have no one bias."""
    mixed = AutoConfig.for_model(
        "deepseek_v3",
        num_hidden_layers=4,
        first_k_dense_replace=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        hidden_size=64,
    )
    assert find_site(mixed, [0, 1]).name == "mlp.down_proj"
    with pytest.raises(ExportError, match="no linear layer's bias"):
        find_site(mixed, [1, 2])


def test_kinds_that_compute_something_else_are_told_apart() -> None:
    """With the same names and shapes of weights."""
    source = config("mistral")
    assert find_site(source, [1], as_llama(source)).has_bias
    for changes in ({"hidden_act": "gelu"}, {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}):
        other = as_llama(source)
        for name, value in changes.items():
            setattr(other, name, value)
        with pytest.raises(ExportError):
            find_site(source, [1], other)


def test_forms() -> None:
    assert fitting_form(config("phi"), [0]).name == NATIVE
    assert fitting_form(config("qwen2"), [0]).name == AS_LLAMA
    assert fitting_form(config("mistral"), [0]).config.mlp_bias
    with pytest.raises(ExportError, match=r"window, here of 8 tokens"):
        fitting_form(config("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1), [0])


def test_a_miniature_is_the_same_at_every_call_and_draws_from_no_generator() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, second = (miniature(config("llama", seed=seed)) for seed in (0, 1))
    assert torch.equal(logits(first), logits(second)) and torch.equal(torch.rand(1), expected)


def test_weights_of_another_kind_do_not_fit() -> None:
    with pytest.raises(ExportError, match="llama and qwen3 have different weights"):
        with_weights_of(miniature(config("llama")), config("qwen3"))


def test_biases_are_taken_away_again() -> None:
    model = miniature(config("llama"))
    before = logits(model)
    with pytest.raises(RuntimeError), biased(model, "mlp.down_proj", {1: torch.ones(32)}):
        assert not torch.equal(logits(model), before)
        raise RuntimeError
    assert torch.equal(logits(model), before)
    assert all(module.bias is None for module in model.modules() if isinstance(module, nn.Linear))
