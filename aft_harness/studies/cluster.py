"""Studies on workers: from what is asked and where to what came out.

Knows the kinds of work, the folder, the workers and the leaderboard, and puts them together.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from aft_harness.errors import FileError, StudyError
from aft_harness.results import leaderboard
from aft_harness.studies import ray_pool
from aft_harness.studies.cells import Finished, Work
from aft_harness.studies.dispatch import refuse_failed
from aft_harness.studies.distributed import DistributedStudy, OnResult
from aft_harness.studies.plan import Plan
from aft_harness.studies.storage import Storage
from aft_harness.studies.sweep import Sweep
from aft_harness.studies.sweep_cells import SweepWork
from aft_harness.studies.transfer import Reports
from aft_harness.studies.transfer_cells import TransferWork
from aft_harness.studies.workers import Place, Workers


def transfer(plan: Plan, folder: str | Path, table: Path, place: Place, reports: Reports | None = None) -> pd.DataFrame:
    """Runs a transfer study on workers, from what its folder holds.

    Args:
        plan: What is asked.
        folder: A path of this machine, or an address that fsspec knows.
        table: The leaderboard's CSV file, on this machine.
        place: Where the workers are.
        reports: Whom to report to.

    Returns:
        The leaderboard.

    Raises:
        StudyError: Ray or a cluster is not there, or cells failed; all others are done then.
        FileError: The folder or the leaderboard cannot be written.
    """
    if any(plan.files):
        raise StudyError("GGUF files are evaluated on one machine; run the study without workers, or leave out 'files'")
    storage = Storage(folder)
    if not table.parent.is_dir():
        raise FileError(f"{table}: the folder does not exist")

    def add(finished: Finished) -> None:
        for data in finished.files.values():
            leaderboard.add(table, json.loads(data))

    _run(TransferWork.of(plan), storage, place, plan.workers, add, reports)
    return leaderboard.load(table)


def sweep(work: SweepWork, folder: str | Path, place: Place, reports: Reports | None = None) -> Sweep:
    """Runs a sweep on workers, from what its folder holds.

    Args:
        work: What is asked.
        folder: See `transfer`.
        place: See `transfer`.
        reports: See `transfer`.

    Raises:
        StudyError: See `transfer`.
        FileError: The folder cannot be written.
    """
    found: list[Any] = []
    _run(work, Storage(folder), place, Workers(), lambda finished: found.append(finished.value), reports)
    return found[0]


def _run(
    work: Work, storage: Storage, place: Place, workers: Workers, on_result: OnResult, reports: Reports | None
) -> None:
    with ray_pool.opened(place, work, workers) as pool:
        failed = DistributedStudy(work, storage, pool, workers, on_result, reports or Reports()).run()
    refuse_failed(failed, storage)
