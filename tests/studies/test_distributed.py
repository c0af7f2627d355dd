"""Studies on workers: the leaderboard of a single process, whoever is lost and however many there are."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from pool_cases import Pool, plan_of, undated

from aft_harness.errors import StudyError
from aft_harness.harness.model import SteeredHFLM
from aft_harness.results import leaderboard
from aft_harness.studies import cluster, transfer
from aft_harness.studies.cells import Finished
from aft_harness.studies.dispatch import Cell, FailedCell
from aft_harness.studies.distributed import DistributedStudy
from aft_harness.studies.plan import Plan
from aft_harness.studies.storage import Storage
from aft_harness.studies.transfer_cells import TransferWork
from aft_harness.studies.worker import Worker
from aft_harness.studies.workers import Place


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


@pytest.fixture(scope="module")
def alone(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What one process finds, undisturbed."""
    folder = tmp_path_factory.mktemp("alone")
    transfer.run(plan_of(checkpoint), folder, folder / "l.csv")
    return undated(folder / "l.csv")


def run(plan: Plan, place: str, table: Path, pool: Pool, notes: list[str] | None = None) -> list[FailedCell]:
    def add(finished: Finished) -> None:
        for data in finished.files.values():
            leaderboard.add(table, json.loads(data))

    reports = transfer.Reports(note=notes.append) if notes is not None else transfer.Reports()
    failed = DistributedStudy(TransferWork.of(plan), Storage(place), pool, plan.workers, add, reports).run()
    pool.close()
    return failed


def test_workers_find_what_one_process_finds_and_never_twice(checkpoint: str, alone: str, tmp_path: Path) -> None:
    plan, place, table = plan_of(checkpoint), f"memory://{tmp_path.name}/work", tmp_path / "l.csv"
    pool, notes = Pool(TransferWork.of(plan), 2), list[str]()
    assert run(plan, place, table, pool, notes) == []
    assert undated(table) == alone
    assert sum("toy_choice: 23 training documents from train[0:24]" in note for note in notes) == 1
    labels = [label for _, label in pool.ran]
    assert [label for label in labels if "share" in label and "toy_choice" in label] == [
        f"evaluate toy_choice, share {number} of 4" for number in (1, 2, 3, 4)
    ]
    assert {worker for worker, label in pool.ran if "train" in label} == {0, 1}
    storage = Storage(place)
    assert len(storage.names("boosters")) == 4 and len(storage.names("results")) == 2
    # Another run, with another number of workers, has nothing to do.
    again = Pool(TransferWork.of(plan), 1)
    before = table.read_bytes()
    assert run(plan, place, table, again) == [] and table.read_bytes() == before
    assert [label.split()[0] for _, label in again.ran] == ["load", "look", "look"]


def test_whoever_is_lost_the_leaderboard_is_the_same(checkpoint: str, alone: str, tmp_path: Path) -> None:
    plan, draw = plan_of(checkpoint), random.Random(1)
    fates: dict[str, int] = {}

    def dies(cell: Cell) -> bool:
        # Each cell at most twice: of three times nobody would know that it is not the cell's fault.
        if draw.random() < 0.4 and fates.get(cell.label, 0) < 2:
            fates[cell.label] = fates.get(cell.label, 0) + 1
            return True
        return False

    class Ended(Exception):
        pass

    class Mortal(Pool):
        def wait(self) -> Any:
            if len(self.ran) == 9:
                raise Ended  # the near end is killed in the middle of the shares
            return super().wait()

    place, table = str(tmp_path / "work"), tmp_path / "l.csv"
    with pytest.raises(Ended):
        run(plan, place, table, Mortal(TransferWork.of(plan), 3, dies))
    kept = {path.name for path in (tmp_path / "work" / "answers").rglob("*.answers")}
    assert kept and sum(fates.values()) > 2
    pool = Pool(TransferWork.of(plan), 2, dies)
    assert run(plan, place, table, pool) == []
    assert undated(table) == alone
    assert not any("train" in label for _, label in pool.ran)
    # What one process left, workers go on from, and the other way round.
    transfer.run(plan, tmp_path / "work", tmp_path / "again.csv")
    assert undated(tmp_path / "again.csv") == alone


def test_a_training_that_cannot_be_done_leaves_the_others(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, tried = Worker.train, list[int]()

    def failing(self: Worker, opened: Any, training: int) -> Any:
        if training == 1:
            tried.append(training)
            raise ValueError("no\nluck")
        return train(self, opened, training)

    plan, notes = plan_of(checkpoint), list[str]()
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "train", failing)
        failed = run(plan, str(tmp_path / "w"), tmp_path / "l.csv", Pool(TransferWork.of(plan), 2), notes)
    (cell,) = failed
    assert cell.label == "train toy_choice, layers 1, seed 1" and cell.message.startswith("ValueError: no luck (on ")
    assert len(tried) == 3 and sum("trying again" in note for note in notes) == 2
    assert len(leaderboard.load(tmp_path / "l.csv")) == 1 + 3 + 2  # without seed 1 of toy_choice, and its pooled row
    # Once it can be done, the leaderboard is that of an undisturbed study.
    assert run(plan, str(tmp_path / "w"), tmp_path / "l.csv", Pool(TransferWork.of(plan), 1)) == []
    whole = tmp_path / "whole.csv"
    transfer.run(plan, tmp_path / "whole", whole)
    assert undated(tmp_path / "l.csv") == undated(whole)


def test_a_model_that_no_worker_can_load_leaves_the_other_models(checkpoint: str, alone: str, tmp_path: Path) -> None:
    models = [{"pretrained": str(tmp_path / "nowhere")}, *plan_of(checkpoint).models]
    plan, notes = plan_of(checkpoint, models=models), list[str]()
    (failed,) = run(plan, str(tmp_path / "w"), tmp_path / "l.csv", Pool(TransferWork.of(plan), 2), notes)
    assert failed.label == "load nowhere" and "nowhere: no such folder (on " in failed.message
    assert undated(tmp_path / "l.csv") == alone
    assert all("\n" not in note for note in notes)


def test_what_is_damaged_in_the_folder_is_done_again(checkpoint: str, alone: str, tmp_path: Path) -> None:
    plan, work = plan_of(checkpoint), tmp_path / "work"
    run(plan, str(work), tmp_path / "l.csv", Pool(TransferWork.of(plan), 2))
    for pattern in ("boosters/*-s0-*.safetensors", "results/*.json", "answers/*/*.answers"):
        path = sorted(work.glob(pattern))[0]
        path.write_bytes(path.read_bytes()[:-7])
    pool = Pool(TransferWork.of(plan), 2)
    run(plan, str(work), tmp_path / "again.csv", pool)
    assert undated(tmp_path / "again.csv") == alone
    assert sum(label.startswith("train") for _, label in pool.ran) == 1


def test_a_worker_holds_one_model_and_loads_it_once(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    monkeypatch.setattr(
        SteeredHFLM,
        "__init__",
        lambda self, *a, _init=SteeredHFLM.__init__, **k: (loaded.append(1), _init(self, *a, **k))[1],
    )
    worker = Worker(TransferWork.of(plan_of(checkpoint)))
    for _ in range(2):
        worker.run("describe", 0)
    assert len(loaded) == 1
    worker.close()


def test_files_are_not_evaluated_on_workers(tmp_path: Path) -> None:
    plan = Plan.of(
        {
            "models": [{"pretrained": "m", "files": [{"pretrained": str(tmp_path / "m.gguf")}]}],
            "train": {"a": {"toy_choice": {}}},
            "evaluate": ["toy_choice"],
        }
    )
    with pytest.raises(StudyError, match="GGUF files are evaluated on one machine; run the study without workers"):
        cluster.transfer(plan, tmp_path / "work", tmp_path / "l.csv", Place.parse("local:2"))
    assert not (tmp_path / "work").exists()
