"""Processes side by side: what one process would have done, shared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from aft_harness.boosters.booster import Booster
from aft_harness.engine.processes import ALONE, Processes

HERE = Path(__file__).parent
TOYS = HERE.parent / "toy_tasks"
FLAGS = [
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
]


def test_one_process_has_all() -> None:
    assert Processes.present() == ALONE and ALONE.part.takes(5)
    assert ALONE.of([1, 2, 3]) == ALONE.joined([1, 2, 3]) == [1, 2, 3] and ALONE.gathered("a") == ["a"]


def test_shares_are_joined_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    items = list(range(7))
    shares = [list(Processes(rank, 3).of(items)) for rank in range(3)]
    monkeypatch.setattr(Processes, "gathered", lambda self, value: shares)
    assert Processes(1, 3).joined(shares[1]) == items


def run(command: list[str], *arguments: object, folder: Path) -> list[dict[str, Any]]:
    folder.mkdir()
    done = subprocess.run(
        [*command, str(HERE / "side_by_side.py"), *map(str, arguments), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(path.read_text()) for path in sorted(folder.glob("record-*.json"))]


def results(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The one results file in a folder, and its samples by task."""
    (path,) = folder.rglob("results_*.json")
    samples = {each.name.rpartition("_")[0]: each.read_text() for each in folder.rglob("samples_*.jsonl")}
    return json.loads(path.read_text()), samples


def test_two_processes_train_and_evaluate_as_one(tiny_checkpoint: Any, tmp_path: Path) -> None:
    booster = tmp_path / "booster.safetensors"
    Booster.static({1: torch.linspace(-1, 1, 32)}).save(booster)
    arguments = (tiny_checkpoint("llama"), TOYS, booster)
    launch = [sys.executable, "-m", "accelerate.commands.launch", *FLAGS]
    two = run(launch, *arguments, folder=tmp_path / "two")
    (alone,) = run([sys.executable], *arguments, folder=tmp_path / "one")

    assert len(two) == 2 and two[0]["sha256"] == two[1]["sha256"]
    for record in two:
        assert len(record["gradients"]) == len(alone["gradients"]) == 10
        assert record["gradients"][0] == pytest.approx(alone["gradients"][0], rel=1e-6, abs=1e-9)
        for name in ("losses", "step_losses", "divergence", "before", "after"):
            assert record[name] == pytest.approx(alone[name], rel=1e-6), name

    # No document is evaluated twice: what both ran is what one ran, and each ran a part of it.
    for name, count in alone["counts"].items():
        shares = [record["counts"][name] for record in two]
        assert min(shares) > 0 and sum(shares) == count, (name, shares, count)
    (ours, our_samples), (theirs, their_samples) = (results(tmp_path / name) for name in ("two", "one"))
    assert set(our_samples) == {"samples_toy_choice", "samples_toy_text", "samples_toy_rolling"}
    assert our_samples == their_samples
    for part in ("results", "configs", "n-samples", "versions", "task_hashes"):
        assert ours[part] == theirs[part], part
