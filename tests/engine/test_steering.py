from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_cases import ARCHITECTURES, TOKENS, booster_for, logits
from torch import nn

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.injections import ContextualInjection
from aft_harness.boosters.mixing import mix
from aft_harness.engine.decoder import decoder_layers
from aft_harness.engine.steering import Steering, recorded
from aft_harness.errors import BoosterError, ModelError


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
    first, second = booster_for(model, 1), booster_for(model, 2, seed=1)
    with Steering(model, first, 0.7), Steering(model, second, -1.3):
        both = logits(model)
    with Steering(model, mix([(first, 0.7), (second, -1.3)])):
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


def test_a_booster_that_does_not_fit_is_refused(tiny_model: Any) -> None:
    model = tiny_model("llama")
    with pytest.raises(BoosterError, match=r"hidden size of 7.*has 32"):
        Steering(model, Booster.static({1: torch.ones(7)}))
    with pytest.raises(BoosterError, match=r"layer 4 is out of range.*0 to 3"):
        Steering(model, Booster.static({4: torch.ones(32)}))


def compile_whole(model: Any) -> Any:
    model.compile(backend="eager")
    return model


def compile_inside(model: Any) -> Any:
    model.model = torch.compile(model.model, backend="eager")
    return model


def compile_forward(model: Any) -> Any:
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def compile_a_layer(model: Any) -> Any:
    model.model.layers[1].compile(backend="eager")
    return model


@pytest.mark.parametrize(
    "compiles",
    [compile_whole, compile_inside, compile_forward, compile_a_layer, lambda m: torch.compile(m, backend="eager")],
)
@pytest.mark.parametrize("ran_before", [False, True])
def test_a_compiled_model_is_steered_or_refused(tiny_model: Any, compiles: Any, ran_before: bool) -> None:
    torch._dynamo.reset()
    booster = Booster.static({1: torch.linspace(-1, 1, 32)})
    expected = tiny_model("llama")
    with Steering(expected, booster):
        steered = logits(expected)
    model = compiles(tiny_model("llama"))
    if ran_before:
        logits(model)
    try:
        with Steering(model, booster):
            found = logits(model)
    except ModelError as error:
        assert "was compiled and ignores hooks" in str(error)
    else:
        torch.testing.assert_close(found, steered)
    torch._dynamo.reset()


def test_an_uncompiled_model_is_not_run_to_be_steered(tiny_model: Any) -> None:
    model = tiny_model("llama")
    runs: list[int] = []
    model.register_forward_pre_hook(lambda module, args: runs.append(1))
    with Steering(model, Booster.static({1: torch.ones(32)})):
        assert not runs


def test_entering_twice_ends_with_the_outer_block(tiny_model: Any) -> None:
    model = tiny_model("llama")
    plain = logits(model)
    steering = Steering(model, Booster.static({1: torch.ones(32)}))
    with steering:
        once = logits(model)
        with steering:
            assert torch.equal(logits(model), once)
        assert torch.equal(logits(model), once)
    assert torch.equal(logits(model), plain) and not torch.equal(once, plain)
    assert not any(layer._forward_hooks for layer in model.model.layers)


def test_boosters_that_are_attached_apart_do_what_their_mixture_does(tiny_model: Any) -> None:
    def made(seed: int) -> Booster:
        fresh = ContextualInjection.fresh(32, 4, seed)
        generator = torch.Generator().manual_seed(seed)
        up = torch.randn(32, 4, generator=generator)
        return Booster({1: fresh.with_tensors({**fresh.tensors, "up.weight": up})})

    model = tiny_model("llama")
    one, two = made(0), made(1)
    with Steering(model, mix([(one, 1.0), (two, 0.5)])):
        mixed = logits(model)
    with Steering(model, one), Steering(model, two, 0.5):
        apart = logits(model)
    torch.testing.assert_close(apart, mixed, rtol=1e-4, atol=1e-4)
    with Steering(model, two, 0.5):
        pass
    assert not any(layer._forward_hooks for layer in model.model.layers)


def test_a_layer_that_returns_a_list_is_steered() -> None:
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    model = OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=320, n_embd=32, n_layer=2, n_head=4)).eval()
    plain = logits(model)
    with Steering(model, Booster.static({1: torch.ones(32)}), layers_path="transformer.h"):
        assert not torch.equal(logits(model), plain)
