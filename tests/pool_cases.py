"""Workers in this process, which die when they are told to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from aft_harness.studies.cells import Work
from aft_harness.studies.dispatch import Cell
from aft_harness.studies.plan import Plan
from aft_harness.studies.worker import Failure, Outcome, Worker

TOYS = str(Path(__file__).parent / "toy_tasks")


class Pool:
    """Workers that take turns; see `dispatch.Pool`.

    `dies` is asked before each cell whether its worker is lost with it.
    """

    def __init__(self, work: Work, count: int, dies: Callable[[Cell], bool] = lambda cell: False) -> None:
        self._work, self._dies = work, dies
        self._hands = {worker: Worker(work) for worker in range(count)}
        self._due: list[tuple[int, Cell | None]] = [(worker, None) for worker in self._hands]
        self.ran: list[tuple[int, str]] = []

    @property
    def workers(self) -> set[int]:
        return set(self._hands)

    def start(self, worker: int, cell: Cell) -> None:
        self._due.append((worker, cell))

    def wait(self) -> list[tuple[int, Outcome | None]]:
        worker, cell = self._due.pop(0)
        if cell is None:
            return [(worker, None)]
        if self._dies(cell):
            self._hands[worker].close()
            self._hands[worker] = Worker(self._work)
            self._due.append((worker, None))
            return [(worker, Failure("the worker was lost", lost=True))]
        self.ran.append((worker, cell.label))
        return [(worker, self._hands[worker].run(cell.method, cell.model, *cell.arguments))]

    def close(self) -> None:
        for worker in self._hands.values():
            worker.close()


def content(checkpoint: str, **changes: Any) -> dict[str, Any]:
    """A small study: four boosters, two evaluations that are cut in shares."""
    return {
        "models": [{"pretrained": checkpoint, "device": "cpu", "batch_size": 2}],
        "train": {"toy_choice": None, "both": {"toy_choice": {"limit": 4}, "toy_text": {"limit": 4, "weight": 2.0}}},
        "evaluate": {"toy_choice": None, "toy_text": {"docs": "0:6", "seeds": [0]}},
        "layers": [[1]],
        "seeds": [0, 1],
        "recipe": {"epochs": 1, "lr": 0.3, "rate_unit": "absolute"},
        "include_path": [TOYS],
        "workers": {"documents": 3},
        **changes,
    }


def plan_of(checkpoint: str, **changes: Any) -> Plan:
    """The study as a plan."""
    return Plan.of(content(checkpoint, **changes))


def plan_file(folder: Path, checkpoint: str, **changes: Any) -> Path:
    """The study as a file."""
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(content(checkpoint, **changes)))
    return path


def undated(path: Path) -> str:
    """A leaderboard's text without its dates."""
    import pandas as pd

    return str(pd.read_csv(path, dtype=str).drop(columns="date").to_csv())


def counted(count: int) -> Iterator[bool]:
    """Yes, so many times."""
    yield from [True] * count
    while True:
        yield False
