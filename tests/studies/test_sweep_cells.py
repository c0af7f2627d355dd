"""Sweeps on workers: the table of one process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pool_cases import Pool
from study_cases import TOYS

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.layers import Layers
from aft_harness.boosters.variant import Variant
from aft_harness.errors import StudyError
from aft_harness.harness.examples import examples_of
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.selection import PromptFormat, TaskSelection
from aft_harness.harness.tasks import Tasks
from aft_harness.studies import cluster, ray_pool, sweep
from aft_harness.studies.sweep_cells import SweepWork
from aft_harness.studies.worker import Worker
from aft_harness.studies.workers import Place
from aft_harness.training.recipe import Settings

SETTINGS = Settings(epochs=1, lr=0.2, rate_unit="absolute", keep=0.0)
HERE = Place(count=2)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[Pool]:
    """The pools that were opened; workers are in this process."""
    from contextlib import contextmanager

    found: list[Pool] = []

    @contextmanager
    def opened(place: Place, work: Any, workers: Any) -> Any:
        found.append(Pool(work, place.count or 1))
        yield found[-1]
        found[-1].close()

    monkeypatch.setattr(ray_pool, "opened", opened)
    monkeypatch.setattr("aft_harness.studies.workers.DOCUMENTS", 4)
    return found


def work_of(checkpoint: str, dev_docs: int = 6, **changes: Any) -> SweepWork:
    model = {"pretrained": checkpoint, "device": "cpu", "batch_size": 2}
    selections = (TaskSelection("toy_choice", limit=8, dev_docs=dev_docs),)
    how: dict[str, Any] = {"settings": SETTINGS, "include_path": (TOYS,), **changes}
    return SweepWork(model, selections, ("toy_choice",), PromptFormat(), **how)


def alone(work: SweepWork, folder: Path) -> sweep.Sweep:
    lm, source = SteeredHFLM(**work.model), Tasks(work.include_path)
    drawn = [examples_of(*each, lm, work.prompt_format, 0) for each in source.select(work.selections)]
    test = sweep.Test(work.test, work.prompt_format, work.limit, work.docs, source)
    if work.variant is not None:
        return sweep.strengths(lm, work.variant, work.strengths, drawn, test)
    assert work.layers is not None
    return sweep.layers(lm, drawn, work.settings, work.layers.resolve(4), folder, test)


def test_layers_are_trained_by_workers_and_never_twice(checkpoint: str, tmp_path: Path, pools: list[Pool]) -> None:
    work = work_of(checkpoint, layers=Layers.of("0-2"))
    (tmp_path / "alone").mkdir()
    expected = alone(work, tmp_path / "alone")
    found = cluster.sweep(work, tmp_path / "work", HERE)
    pd.testing.assert_frame_equal(found.frame, expected.frame)
    assert (found.unchanged, found.chosen.variant.name) == (expected.unchanged, expected.chosen.variant.name)
    labels = [label for _, label in pools[0].ran]
    assert sum(label.startswith("train layer") for label in labels) == 3
    assert "evaluate toy_choice, share 1 of 3" in labels
    again = cluster.sweep(work, tmp_path / "work", HERE)
    pd.testing.assert_frame_equal(again.frame, expected.frame)
    assert not any(label.startswith("train") for _, label in pools[1].ran)
    # One process goes on from what workers left.
    pd.testing.assert_frame_equal(alone(work, tmp_path / "work").frame, expected.frame)


def test_strengths_are_swept_by_workers(checkpoint: str, tmp_path: Path, pools: list[Pool]) -> None:
    booster = Booster.static({1: torch.linspace(-1, 1, 32)}, {"documents": {"count": 0, "hashes": []}})
    work = work_of(checkpoint, variant=Variant("a.safetensors", booster), strengths=(0.5, 1.0))
    expected = alone(work, tmp_path)
    found = cluster.sweep(work, tmp_path / "work", HERE)
    pd.testing.assert_frame_equal(found.frame, expected.frame)
    assert [point.variant.name for point in found.points] == ["a at 0.5", "a at 1"]


def test_a_layer_that_cannot_be_trained_ends_in_one_line(
    checkpoint: str, tmp_path: Path, pools: list[Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Worker, opened: Any, training: int) -> Any:
        raise ValueError("no luck")

    monkeypatch.setattr(Worker, "train", failing)
    work = replace(work_of(checkpoint), layers=Layers.of("0"))
    with pytest.raises(StudyError, match="1 cell failed 3 times, first train layer 0: ValueError: no luck"):
        cluster.sweep(work, tmp_path / "work", HERE)
