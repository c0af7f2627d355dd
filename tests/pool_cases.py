"""Workers in this process, which die when they are told to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from study_cases import study, study_file

from aft_harness.studies.cells import Work
from aft_harness.studies.dispatch import Cell
from aft_harness.studies.plan import Plan
from aft_harness.studies.worker import Failure, Outcome, Worker


class Hands:
    """Workers that take turns and do whatever a function says; see `dispatch.Pool`. It keeps who did what."""

    def __init__(self, count: int, act: Callable[[int, Cell], Outcome]) -> None:
        self.workers, self._act = set(range(count)), act
        self._due: list[tuple[int, Cell | None]] = [(worker, None) for worker in range(count)]
        self.did: list[tuple[int, str]] = []

    def share(self, value: Any) -> Any:
        return value

    def start(self, worker: int, cell: Cell) -> None:
        self._due.append((worker, cell))

    def wait(self) -> list[tuple[int, Outcome | None]]:
        worker, cell = self._due.pop(0)
        if cell is None:
            return [(worker, None)]
        self.did.append((worker, cell.label))
        outcome = self._act(worker, cell)
        if isinstance(outcome, Failure) and outcome.lost:
            self._due.append((worker, None))
        return [(worker, outcome)]


class Pool(Hands):
    """Workers that run cells.

    `dies` is asked before each cell whether its worker is lost with it; `ran` has the cells of which that was not so.
    """

    def __init__(self, work: Work, count: int, dies: Callable[[Cell], bool] = lambda cell: False) -> None:
        super().__init__(count, self._run)
        self._work, self._dies = work, dies
        self._hands = {worker: Worker(work) for worker in self.workers}
        self.ran: list[tuple[int, str]] = []

    def _run(self, worker: int, cell: Cell) -> Outcome:
        if self._dies(cell):
            self._hands[worker].close()
            self._hands[worker] = Worker(self._work)
            return Failure("the worker was lost", lost=True)
        self.ran.append((worker, cell.label))
        return self._hands[worker].run(cell.method, cell.model, *cell.arguments)

    def close(self) -> None:
        for worker in self._hands.values():
            worker.close()


def _cut(checkpoint: str) -> dict[str, Any]:
    """What has evaluations cut in shares of several passes."""
    return {
        "models": [{"pretrained": checkpoint, "device": "cpu", "batch_size": 2}],
        "workers": {"documents": 3},
    }


def plan_of(checkpoint: str, **changes: Any) -> Plan:
    """The study of `study_cases` as a plan, its evaluations cut in shares."""
    return Plan.of(study(checkpoint, **{**_cut(checkpoint), **changes}))


def plan_file(folder: Path, checkpoint: str, **changes: Any) -> Path:
    """The same as a file."""
    return study_file(folder, checkpoint, **{**_cut(checkpoint), **changes})


def undated(path: Path) -> str:
    """A leaderboard's text without its dates."""
    import pandas as pd

    return str(pd.read_csv(path, dtype=str).drop(columns="date").to_csv())


def counted(count: int) -> Iterator[bool]:
    """Yes, so many times."""
    yield from [True] * count
    while True:
        yield False
