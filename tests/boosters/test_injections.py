from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.injections import ACTIVATIONS, ContextualInjection, StaticInjection
from aft_harness.boosters.mixing import mix
from aft_harness.engine.steering import Steering
from aft_harness.errors import BoosterError

MODULES = {"gelu": nn.GELU(), "silu": nn.SiLU(), "tanh": nn.Tanh()}


def contextual(rank: int = 3, seed: int = 0, hidden: int = 32, **kinds: str) -> ContextualInjection:
    """One that does something."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"down.weight": (rank, hidden), "down.bias": (rank,), "up.weight": (hidden, rank), "up.bias": (hidden,)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return ContextualInjection.fresh(hidden, rank, 0, **kinds).with_tensors(tensors)


def states(*shape: int) -> torch.Tensor:
    return 5 * torch.randn(*shape, 32, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("input_norm", ["none", "rms"])
def test_a_contextual_delta_is_that_of_torch_modules(activation: str, input_norm: str) -> None:
    injection = contextual(activation=activation, input_norm=input_norm)
    down, up, norm = nn.Linear(32, 3), nn.Linear(3, 32), nn.RMSNorm(32, eps=1e-6, elementwise_affine=False)
    weights = dict(injection.tensors)
    down.load_state_dict({"weight": weights["down.weight"], "bias": weights["down.bias"]})
    up.load_state_dict({"weight": weights["up.weight"], "bias": weights["up.bias"]})
    hidden = states(2, 5)
    with torch.no_grad():
        expected = up(MODULES[activation](down(norm(hidden) if input_norm == "rms" else hidden)))
    torch.testing.assert_close(injection.delta(hidden), expected)
    assert injection.delta(hidden.bfloat16()).dtype == torch.bfloat16


def test_it_starts_as_the_unchanged_model_and_can_learn() -> None:
    fresh = ContextualInjection.fresh(32, 4, seed=1)
    assert fresh.is_zero and not fresh.delta(states(3)).any()
    assert fresh.down_weight.any(), "with both halves zero no gradient would ever flow"
    again, other = ContextualInjection.fresh(32, 4, seed=1), ContextualInjection.fresh(32, 4, seed=2)
    assert torch.equal(fresh.down_weight, again.down_weight) and not torch.equal(fresh.down_weight, other.down_weight)
    assert not contextual().is_zero and contextual().scaled(0.0).is_zero


@pytest.mark.parametrize("others", [(), (contextual(5, 1),), (StaticInjection(torch.randn(32)),)])
def test_strengths_and_sums_are_those_of_the_deltas(others: Any) -> None:
    hidden, mixed = states(4), contextual().scaled(-0.5)
    expected = -0.5 * contextual().delta(hidden)
    for other in others:
        expected = expected + 2.0 * other.delta(hidden)
        mixed = mixed.plus(other.scaled(2.0))
        swapped = other.scaled(2.0).plus(contextual().scaled(-0.5))
        torch.testing.assert_close(swapped.delta(hidden), expected)
    torch.testing.assert_close(mixed.delta(hidden), expected)


def test_a_file_brings_it_back_and_a_model_is_steered_the_same(tmp_path: Path, tiny_model: Any) -> None:
    booster = Booster.of({1: contextual(activation="silu", input_norm="none"), 2: StaticInjection(torch.ones(32))})
    booster.save(tmp_path / "a.safetensors")
    loaded = Booster.load(tmp_path / "a.safetensors")
    assert loaded.sha256 == booster.sha256 and loaded.parameters == 2 * 3 * 32 + 3 + 32 + 32
    model, tokens = tiny_model("llama"), torch.tensor([[5, 6, 7, 8]])
    before = model(tokens).logits
    with Steering(model, booster, 0.5):
        first = model(tokens).logits
    with Steering(model, loaded, 0.5):
        assert torch.equal(model(tokens).logits, first)
    assert torch.equal(model(tokens).logits, before) and not torch.allclose(first, before)
    with Steering(model, booster, 0.0):
        assert torch.equal(model(tokens).logits, before)


def test_a_mixed_file_does_what_both_do_at_once(tiny_model: Any) -> None:
    parts = [
        (Booster.of({1: contextual(), 2: StaticInjection(torch.randn(32))}), 0.7),
        (Booster.of({1: contextual(2, 5), 2: contextual(2, 6)}), -0.4),
    ]
    mixed, tokens = mix(parts), torch.tensor([[5, 6, 7, 8]])
    model = tiny_model("llama")
    layers = model.model.layers

    def both(layer: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> Any:
            return output + sum(strength * booster.injections[layer].delta(output) for booster, strength in parts)

        return hook

    handles = [layers[layer].register_forward_hook(both(layer)) for layer in (1, 2)]
    expected = model(tokens).logits
    for handle in handles:
        handle.remove()
    with Steering(model, mixed):
        torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_one_injection_is_refused() -> None:
    for kinds in ({"activation": "tanh"}, {"input_norm": "none"}):
        with pytest.raises(BoosterError, match=r"layer 1: contextual injections at the same layer differ"):
            mix([(Booster.of({1: contextual()}), 1.0), (Booster.of({1: contextual(**kinds)}), 1.0)])


WRONG = {
    "rank": ({"up.weight": torch.zeros(32, 4)}, {}, r"'up.weight' must be \[32, 3\] for rank 3, not \[32, 4\]"),
    "hidden": ({"up.bias": torch.zeros(31)}, {}, r"'up.bias' must be \[32\]"),
    "no rank": ({"down.weight": torch.zeros(0, 32)}, {}, r"'down.weight' must be \[rank, hidden\]"),
    "tensor": ({"more": torch.zeros(1)}, {}, r"needs the tensors"),
    "activation": ({}, {"activation": "exp"}, r"activation 'exp' is not one of gelu"),
    "norm": ({}, {"input_norm": "layer"}, r"input_norm 'layer' is not one of none, rms"),
    "positions": ({}, {"positions": "last"}, r"positions 'last' is not one of all"),
    "entry": ({}, {"extra": "1"}, r"must have the settings kind"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_malformed_file_is_refused_with_its_name_and_the_reason(name: str, tmp_path: Path) -> None:
    tensors, entry, reason = WRONG[name]
    path = tmp_path / "a.safetensors"
    Booster.of({1: contextual()}).save(path)
    import json

    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["aft"])
    header["injections"]["1"].update(entry)
    changed = {**load_file(path), **{f"layers.1.{key}": tensor for key, tensor in tensors.items()}}
    save_file(changed, path, {"aft": json.dumps(header)})
    with pytest.raises(BoosterError, match=rf"a\.safetensors: layer 1: .*{reason}"):
        Booster.load(path)
