"""Workers on a real Ray cluster of this machine."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from typing import Any

import pytest
from pool_cases import plan_of, undated

from aft_harness.errors import StudyError
from aft_harness.studies import cluster, ray_pool, transfer
from aft_harness.studies.transfer_cells import TransferWork
from aft_harness.studies.workers import Place, Workers
from aft_harness.versions import installed

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


@needs_ray
def test_a_worker_that_is_killed_changes_nothing(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    # What the tests' own processes have, workers have, too.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    plan, notes, killed = plan_of(checkpoint), list[str](), list[int]()
    transfer.run(plan, tmp_path / "alone", tmp_path / "alone.csv")

    def kill(done: int, total: int, label: str) -> None:
        if label.startswith("train") and not killed:
            busy = [
                each for each in psutil.Process().children(recursive=True) if "_RayWorker" in " ".join(each.cmdline())
            ]
            killed.append(busy[0].pid)
            busy[0].kill()

    reports = transfer.Reports(cell=kill, note=notes.append)
    table = tmp_path / "l.csv"
    cluster.transfer(plan, str(tmp_path / "work"), table, Place(count=2), reports)
    assert undated(table) == undated(tmp_path / "alone.csv")
    assert killed and any("the worker was lost" in note and "trying again (2 of 3)" in note for note in notes), notes
    # One worker finds nothing left to do; the results of all others are there.
    found = cluster.transfer(plan, str(tmp_path / "work"), tmp_path / "again.csv", Place(count=1))
    assert len(found) == 8 and undated(tmp_path / "again.csv") == undated(table)


@needs_ray
def test_a_worker_with_other_packages_is_refused(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setattr(ray_pool, "installed", lambda: {**installed(), "lm_eval": "0.4.99"})
    with pytest.raises(StudyError, match=r"the worker on .* has lm_eval 0.4.\d+, and here it is 0.4.99; install"):
        cluster.transfer(plan_of(checkpoint), str(tmp_path / "w"), tmp_path / "l.csv", Place(count=1))


@needs_ray
def test_an_address_without_a_cluster_is_one_line(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    work = TransferWork.of(plan_of(checkpoint))
    for address, reason in (
        (f"ray://127.0.0.1:{port}", f"ray://127.0.0.1:{port}: no Ray cluster takes clients there"),
        ("ray://127.0.0.1:port", "no Ray cluster takes clients there"),
        ("ray", "there is no Ray cluster here; start one with `ray start --head`, or use local:N"),
    ):
        monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
        with pytest.raises(StudyError, match=reason) as caught, ray_pool.opened(Place.parse(address), work, Workers()):
            pass
        assert "\n" not in str(caught.value)


def test_without_ray_a_place_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"local:2 needs Ray: pip install 'aft-harness\[ray\]'"):
        Place.parse("local:2").check_installed()


def test_workers_are_as_many_as_there_is_room_for() -> None:
    node = {"CPU": 16.0, "GPU": 8.0}
    assert ray_pool.room(node, {"num_cpus": 1, "num_gpus": 1.0}) == 8
    assert ray_pool.room(node, {"num_cpus": 4, "num_gpus": 1.0}) == 4
    assert ray_pool.room(node, {"num_cpus": 4, "num_gpus": 0.0}) == 4
    assert ray_pool.room({"CPU": 64.0}, {"num_cpus": 1, "num_gpus": 1.0}) == 0


def test_packages_must_be_the_same() -> None:
    ours = installed()
    ray_pool.check(ours, ours, "here")
    assert {"aft-harness", "lm_eval", "aft-harness code"} <= ours.keys()
    with pytest.raises(StudyError, match="the worker on there has aft-harness code other, and here it is"):
        ray_pool.check({**ours, "aft-harness code": "other"}, ours, "there")
