"""The file of an interrupted training: what goes in comes out, and nothing else is used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aft_harness.boosters.injections import Injection, StaticInjection
from aft_harness.engine.processes import Processes
from aft_harness.training import checkpoint as module
from aft_harness.training.checkpoint import Checkpoint, copied, named, restored
from aft_harness.training.optimiser import adam


def injections(value: float = 0.0) -> dict[int, Injection]:
    return {
        layer: StaticInjection.fresh(4).with_tensors({"vector": torch.full((4,), value + layer).requires_grad_()})
        for layer in (1, 3)
    }


def stepped(parts: dict[int, Injection]) -> torch.optim.Adam:
    optimiser = adam(parts, 0.1)
    torch.stack([tensor.square().sum() for tensor in named(parts).values()]).sum().backward()
    optimiser.step()
    return optimiser


def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    parts, path = injections(), tmp_path / "a.resume"
    optimiser, best = stepped(parts), copied(injections(7.0))
    state = {"losses": [0.1, 1 / 3, float("inf")], "best": None}
    Checkpoint(path, "abc").save(parts, optimiser, best, state)
    others = injections(9.0)
    fresh = adam(others, 0.1)
    found = Checkpoint(path, "abc").load(others, fresh)
    assert found is not None and found[0] == state
    assert all(torch.equal(found[1][name], tensor) for name, tensor in best.items())
    assert all(torch.equal(tensor, named(parts)[name]) for name, tensor in named(others).items())
    for ours, theirs in zip(named(parts).values(), named(others).values(), strict=True):
        for name in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(optimiser.state[ours][name], fresh.state[theirs][name])
    assert all(torch.equal(tensor, best[name]) for name, tensor in named(restored(others, found[1])).items())


@pytest.mark.parametrize("change", ["training", "versions", "processes", "broken", "none", "no metadata"])
def test_a_file_of_anything_else_is_not_used(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, path = injections(), tmp_path / "a.resume"
    optimiser = stepped(parts)
    saved = Checkpoint(path, "abc")
    saved.save(parts, optimiser, {}, {})
    asked = saved
    if change == "training":
        asked = Checkpoint(path, "abd")
    elif change == "versions":
        monkeypatch.setattr(module, "installed", lambda: {"torch": "0.1"})
        asked = Checkpoint(path, "abc")
    elif change == "processes":
        monkeypatch.setattr(Processes, "gathered", lambda self, value: [value])
        asked = Checkpoint(path, "abc", replace(Processes(), count=2))
    elif change == "broken":
        path.write_bytes(path.read_bytes()[:50])
    elif change == "none":
        path.unlink()
    else:
        from safetensors.torch import save_file

        save_file(copied(parts), path)
    before = copied(parts)
    assert asked.load(parts, optimiser) is None
    assert all(torch.equal(before[name], tensor) for name, tensor in named(parts).items())


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    parts: Any = injections()
    Checkpoint(tmp_path / "a", "abc", Processes(1, 2)).save(parts, stepped(parts), {}, {})
    Checkpoint(None, "abc").save(parts, stepped(parts), {}, {})
    assert not list(tmp_path.iterdir())
