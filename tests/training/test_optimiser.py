"""Learning rates by layer, and their schedule."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aft_harness.boosters.injections import ContextualInjection, StaticInjection
from aft_harness.training.optimiser import adam, residual_scale, scheduler


def test_a_massive_first_token_does_not_set_the_scale() -> None:
    hidden = torch.full((9, 4), 3.0)
    hidden[0] = 1e4
    assert residual_scale(hidden) == pytest.approx(3.0)
    assert residual_scale(hidden.bfloat16()) == pytest.approx(3.0)


def test_rates_count_in_the_size_of_each_layer_and_are_shared_by_the_layers() -> None:
    injections: dict[int, Any] = {2: StaticInjection.fresh(4), 5: ContextualInjection.fresh(4, rank=2, seed=0)}
    groups = adam(injections, 0.1, {2: 3.0, 5: 7.0}).param_groups
    rates = {id(group["params"][0]): group["lr"] for group in groups}
    assert rates[id(injections[2].vector)] == pytest.approx(0.1 * 3 / 2)
    # What the delta is not linear in counts in the size of weights over a normalised state of 4 numbers.
    down, up = 0.1 * 0.5 / 2, 0.1 * 7 / 2
    expected = {"down.weight": down, "down.bias": down, "up.weight": up, "up.bias": up}
    assert {name: rates[id(tensor)] for name, tensor in injections[5].tensors.items()} == pytest.approx(expected)


def test_absolute_rates_are_the_same_everywhere() -> None:
    injections = {2: StaticInjection.fresh(4), 5: ContextualInjection.fresh(4, rank=2, seed=0)}
    assert {group["lr"] for group in adam(injections, 0.1).param_groups} == {0.1}


def test_the_linear_schedule_decays_to_zero() -> None:
    optimiser = adam({0: StaticInjection(torch.zeros(4, requires_grad=True))}, 0.8)
    pace = scheduler(optimiser, "linear", 4)
    rates = []
    for _ in range(4):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        pace.step()
    assert rates == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0.0)
