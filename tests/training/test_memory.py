from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
import torch

from aft_harness.errors import TrainingError
from aft_harness.training import memory
from aft_harness.training.memory import PASS, Memory

CPU = torch.device("cpu")
GIB = 2**30


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 GiB are free, and this process takes 2."""
    monkeypatch.setattr(memory, "available", lambda device: 8 * GIB)
    monkeypatch.setattr(memory, "used", lambda device: 2 * GIB)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("device", "total", "cache", "expected"),
    [
        # Half of what is free is 4 GiB, a quarter of that is cached.
        ("cpu", None, 2 * GIB, Memory(6 * GIB, PASS, GIB)),
        ("cuda", None, 2 * GIB, Memory(6 * GIB, 3 * GIB * 4 // 5, GIB)),
        ("cuda", None, 0, Memory(6 * GIB, 4 * GIB * 4 // 5, 0)),
        ("cpu", 3 * GIB, 2 * GIB, Memory(3 * GIB, 3 * GIB // 8, GIB // 4)),
        ("cuda", 6 * GIB, GIB // 2, Memory(6 * GIB, 7 * GIB * 2 // 5, GIB // 2)),
    ],
)
def test_what_is_free_is_divided(device: str, total: int | None, cache: int, expected: Memory) -> None:
    assert Memory.of(torch.device(device), total, cache) == expected


@pytest.mark.usefixtures("machine")
def test_a_model_that_takes_it_all_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"the model alone takes 2.00 GiB, so 2.05 GiB are not enough; allow more"):
        Memory.of(CPU, int(2.05 * GIB), GIB)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("taken", "left"), [(3 * GIB, PASS), (5 * GIB, GIB // 2), (7 * GIB, 2**25)])
def test_passes_get_what_is_left_once_everything_else_is_there(
    monkeypatch: pytest.MonkeyPatch, taken: int, left: int
) -> None:
    bounds = Memory.of(CPU, 6 * GIB, GIB)
    monkeypatch.setattr(memory, "used", lambda device: taken)
    assert bounds.left(CPU) == Memory(6 * GIB, left, GIB)


def test_a_machine_without_free_memory_still_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 0)
    bounds = Memory.of(CPU, None, GIB)
    assert 0 < bounds.cache < bounds.passes < 2**27


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="Linux says it there")
def test_the_operating_system_is_asked() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    assert memory.used(CPU) == pytest.approx(pages * os.sysconf("SC_PAGE_SIZE"), rel=0.1)
    assert 0 < memory.available(CPU) < psutil.virtual_memory().total
