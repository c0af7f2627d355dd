from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from aft_harness.boosters.booster import Booster, mix
from aft_harness.engine.steering import (
    Steering,
    check_causal,
    check_layer,
    computed_up_to,
    decoder_layers,
    last_mlp,
    narrowed,
    recorded,
    resumed_after,
)
from aft_harness.errors import BoosterError, ModelError

ARCHITECTURES = ["llama", "phi", "gpt2", "qwen2", "gemma", "falcon", "opt", "gpt_neox", "bloom", "mixtral", "mamba"]
TOKENS = torch.tensor([[3, 17, 42, 5, 99, 12], [8, 8, 120, 44, 7, 1]])


def booster_for(model: Any, layer: int = 1, seed: int = 0) -> Booster:
    generator = torch.Generator().manual_seed(seed)
    return Booster.static({layer: torch.randn(model.config.hidden_size, generator=generator)})


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def with_layer_replaced(model: Any, layer: int, vector: torch.Tensor) -> torch.Tensor:
    """An oracle without hooks: the layer is wrapped in a module that adds the vector to what it returns."""

    class Plus(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = self.inner(*args, **kwargs)
            if isinstance(output, tuple):
                return (output[0] + vector, *output[1:])
            return output + vector

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.inner, name)

    layers = decoder_layers(model)
    inner = layers[layer]
    layers[layer] = Plus(inner)
    try:
        return logits(model)
    finally:
        layers[layer] = inner


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_steering_adds_the_vector_to_the_layers_output(tiny_model: Any, architecture: str) -> None:
    model = tiny_model(architecture)
    booster = booster_for(model)
    expected = with_layer_replaced(model, 1, 0.5 * booster.tensors["layers.1.vector"])
    plain = logits(model)
    with Steering(model, booster, 0.5):
        steered = logits(model)
    torch.testing.assert_close(steered, expected, rtol=0, atol=0)
    assert not torch.allclose(steered, plain, atol=1e-2)
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("architecture", ["llama", "falcon"])
def test_strength_zero_is_no_hook_at_all(tiny_model: Any, architecture: str) -> None:
    model = tiny_model(architecture)
    plain = logits(model)
    with Steering(model, booster_for(model), 0.0):
        assert not any(layer._forward_hooks for layer in decoder_layers(model))
        assert torch.equal(logits(model), plain)


def test_opposite_boosters_leave_the_model_unhooked(tiny_model: Any) -> None:
    model = tiny_model("llama")
    booster = booster_for(model)
    with Steering(model, mix([(booster, 1.0), (booster, -1.0)])):
        assert not any(layer._forward_hooks for layer in decoder_layers(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "phi", "falcon"])
def test_a_float32_vector_does_not_promote_a_half_precision_model(
    tiny_model: Any, architecture: str, dtype: torch.dtype
) -> None:
    model = tiny_model(architecture).to(dtype)
    plain = logits(model)
    with Steering(model, booster_for(model)), recorded(decoder_layers(model), 2) as outputs:
        steered = logits(model)
    assert steered.dtype == dtype and outputs[0].dtype == dtype
    assert torch.isfinite(steered).all() and not torch.equal(steered, plain)


def test_hooks_are_gone_after_an_exception(tiny_model: Any) -> None:
    model = tiny_model("llama")
    plain = logits(model)
    with pytest.raises(RuntimeError, match="boom"), Steering(model, booster_for(model)):
        raise RuntimeError("boom")
    assert torch.equal(logits(model), plain)


def test_attach_and_detach_may_be_repeated(tiny_model: Any) -> None:
    model = tiny_model("gpt2")
    plain = logits(model)
    steering = Steering(model, booster_for(model)).attach()
    once = logits(model)
    steering.attach()
    assert torch.equal(logits(model), once) and not torch.equal(once, plain)
    steering.detach()
    steering.detach()
    assert torch.equal(logits(model), plain)


def test_two_boosters_at_once_equal_their_mix(tiny_model: Any) -> None:
    model = tiny_model("qwen2").double()
    one, two = booster_for(model, 1), booster_for(model, 2, seed=1)
    with Steering(model, one, 0.7), Steering(model, two, -1.3):
        both = logits(model)
    with Steering(model, mix([(one, 0.7), (two, -1.3)])):
        torch.testing.assert_close(logits(model), both, rtol=0, atol=1e-6)


def test_cached_generation_equals_uncached(tiny_model: Any) -> None:
    model = tiny_model("llama")
    with Steering(model, booster_for(model), 2.0):
        cached = model.generate(TOKENS, max_new_tokens=12, do_sample=False, use_cache=True)
        plain = model.generate(TOKENS, max_new_tokens=12, do_sample=False, use_cache=False)
    assert torch.equal(cached, plain)


def test_left_and_right_padding_agree(tiny_model: Any) -> None:
    model = tiny_model("llama")
    pad, row = torch.zeros(1, 3, dtype=torch.long), TOKENS[:1]
    ones, zeros = torch.ones_like(row), torch.zeros_like(pad)
    with torch.no_grad(), Steering(model, booster_for(model)):
        left = model(
            torch.cat([pad, row], 1),
            attention_mask=torch.cat([zeros, ones], 1),
            position_ids=torch.cat([zeros, torch.arange(row.shape[1])[None]], 1),
        ).logits[:, 3:]
        right = model(torch.cat([row, pad], 1), attention_mask=torch.cat([ones, zeros], 1)).logits[:, : row.shape[1]]
    torch.testing.assert_close(left, right, rtol=0, atol=1e-4)


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


def test_a_booster_that_does_not_fit_is_refused(tiny_model: Any) -> None:
    model = tiny_model("llama")
    with pytest.raises(BoosterError, match=r"hidden size of 7.*has 32"):
        Steering(model, Booster.static({1: torch.ones(7)}))
    with pytest.raises(BoosterError, match=r"layer 4 is out of range.*0 to 3"):
        Steering(model, Booster.static({4: torch.ones(32)}))


def test_a_compiled_model_is_refused_since_it_ignores_hooks(tiny_model: Any) -> None:
    model = torch.compile(tiny_model("llama"))
    with pytest.raises(ModelError, match="compiled"):
        Steering(model, Booster.static({1: torch.ones(32)}))


@pytest.mark.parametrize("layer", [-1, 4])
def test_check_layer(layer: int) -> None:
    assert check_layer(3, 4) == 3
    with pytest.raises(ModelError, match=f"layer {layer} is out of range: the model has layers 0 to 3"):
        check_layer(layer, 4)


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


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gemma3_text"])
@pytest.mark.parametrize("layer", [0, 2, 3])
def test_a_pass_resumed_at_a_layer_equals_a_full_one(tiny_model: Any, architecture: str, layer: int) -> None:
    model = tiny_model(architecture)
    layers = decoder_layers(model)
    booster = booster_for(model, layer)
    ran: list[int] = []
    handles = [
        module.register_forward_pre_hook(lambda module, args, index=index: ran.append(index))
        for index, module in enumerate(layers)
    ]
    with torch.no_grad(), Steering(model, booster):
        output = computed_up_to(layers, layer, lambda: model(TOKENS, use_cache=False))
    assert ran == list(range(layer + 1))
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        with Steering(model, booster):
            full = model(TOKENS, use_cache=False).logits
            with resumed_after(layers, layer, output):
                assert torch.equal(model(TOKENS, use_cache=False).logits, full)
        plain = model(TOKENS, use_cache=False).logits
        with resumed_after(layers, layer, output):
            assert torch.equal(model(TOKENS, use_cache=False).logits, plain)
    assert all("forward" not in vars(module) for module in layers)


def test_resuming_puts_back_an_instances_own_forward(tiny_model: Any) -> None:
    model = tiny_model("llama")
    layers = decoder_layers(model)
    own = layers[0].forward
    layers[0].forward = own
    with pytest.raises(RuntimeError, match="boom"), resumed_after(layers, 1, TOKENS):
        raise RuntimeError("boom")
    assert layers[0].forward is own and "forward" not in vars(layers[1])


def test_a_narrowed_module_runs_at_chosen_positions_only(tiny_model: Any) -> None:
    layers = decoder_layers(tiny_model("llama"))
    mlp = last_mlp(layers)
    assert mlp is not None and mlp is layers[-1].mlp
    hidden = torch.randn(2, 5, 32)
    keep = torch.tensor([[True, False, False, True, False], [False, False, True, False, False]])
    seen: list[int] = []
    handle = layers[-1].mlp.gate_proj.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[-2]))
    with torch.no_grad():
        whole = mlp(hidden)
        with narrowed(mlp, keep):
            some = mlp(hidden)
            elsewhere = mlp(hidden[:, :3])  # not the positions that are meant
    handle.remove()
    torch.testing.assert_close(some[keep], whole[keep])
    torch.testing.assert_close(elsewhere, whole[:, :3])
    assert not some[~keep].any() and seen == [5, 3, 3] and "forward" not in vars(mlp)


def test_a_module_that_needs_more_than_the_hidden_state_is_left_alone(tiny_model: Any) -> None:
    assert last_mlp(decoder_layers(tiny_model("bloom"))) is None  # takes the residual, too
    assert last_mlp(decoder_layers(tiny_model("mamba"))) is None  # has none
    router = nn.Linear(4, 4)

    class Tuple(nn.Module):
        def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
            return router(hidden), hidden

    module = Tuple()
    hidden = torch.randn(1, 3, 4)
    with narrowed(module, torch.tensor([[True, False, False]])):
        torch.testing.assert_close(module(hidden)[0], router(hidden))
