"""Memory of this process, as the operating system sees it."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from aft_harness.engine.memory import discard_weights, release


@pytest.mark.skipif(sys.platform != "linux", reason="other allocators give memory back by themselves")
def test_what_nothing_uses_goes_back_to_the_operating_system() -> None:
    blocks = [
        bytearray(b"x" * 2**16) for _ in range(4000)
    ]  # too small for glibc to take them from the system one by one
    last = bytearray(2**16)  # stands above them, so that the heap cannot shrink by itself
    before = psutil.Process().memory_info().rss
    blocks.clear()
    release()
    assert before - psutil.Process().memory_info().rss > 2000 * 2**16
    assert len(last) == 2**16


def test_weights_are_discarded_but_for_those_that_the_rest_uses() -> None:
    layers = [nn.Linear(4, 4) for _ in range(3)]
    layers[0].bias = layers[2].bias
    layers[1].weight = nn.Parameter(layers[2].weight.detach()[:4])  # another tensor over the same numbers
    kept = layers[2].weight.detach().clone(), layers[2].bias.detach().clone()
    assert discard_weights(nn.Sequential(*layers), layers[:2]) == (16 + 4) * 4
    found = [[each.is_meta for each in layer.parameters()] for layer in layers]
    assert found == [[True, False], [False, True], [False, False]]
    assert torch.equal(layers[2].weight, kept[0]) and torch.equal(layers[2].bias, kept[1])
    assert layers[0].weight.shape == (4, 4)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the pages")
def test_discarded_weights_of_a_mapped_file_leave_memory(tmp_path: Path) -> None:
    size = 2**12
    save_file({name: torch.ones(size, size) for name in ("first", "last")}, tmp_path / "weights.safetensors")
    layers = [nn.Linear(1, 1, bias=False) for _ in range(2)]
    for layer, name in zip(layers, ("first", "last"), strict=True):
        with safe_open(tmp_path / "weights.safetensors", "pt") as file:
            layer.weight = nn.Parameter(file.get_tensor(name))
        assert layer.weight.detach().sum() == size**2  # all of its pages are in memory now
    before = psutil.Process().memory_info().rss
    assert discard_weights(nn.ModuleList(layers), layers[:1]) == 4 * size**2
    release()
    assert before - psutil.Process().memory_info().rss > 3.9 * size**2
    assert layers[1].weight.detach().sum() == size**2
