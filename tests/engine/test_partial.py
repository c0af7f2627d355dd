from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_cases import ARCHITECTURES, TOKENS, booster_for
from torch import Tensor, nn

from aft_harness.engine.decoder import decoder_layers
from aft_harness.engine.partial import computed_up_to, last_mlp, narrowed, resumed_after
from aft_harness.engine.steering import Steering


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
    replaced = layers[0].forward
    layers[0].forward = replaced
    with pytest.raises(RuntimeError, match="boom"), resumed_after(layers, 1, TOKENS):
        raise RuntimeError("boom")
    assert layers[0].forward is replaced and "forward" not in vars(layers[1])


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
