"""Simulates a study of 1,000 cells on 64 GPUs, and says what bounds it: the numbers of docs/cost.md.

    python scripts/tools/simulate_cluster.py [--gpus 64] [--overhead 0.002]

The cells are handed out by the very code that hands them out on a cluster; only the workers are imaginary, and so is
time. How long a cell takes is an assumption, which is printed. What a cell costs beside its work is measured
(`python scripts/benchmarks/bench.py --only cell-overhead`).
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from aft_harness.studies.cells import Description, Evaluated, Finished, Training
from aft_harness.studies.dispatch import Cell
from aft_harness.studies.distributed import DistributedStudy
from aft_harness.studies.storage import Storage
from aft_harness.studies.transfer import Reports
from aft_harness.studies.worker import Failure, Outcome, Success
from aft_harness.studies.workers import Workers

MODELS, TRAININGS, EVALUATIONS = 4, 240, 10
LOAD, TRAINING, DOCUMENT, LAID, METRICS = 60.0, 60.0, 1.0, 20.0, 0.02
DOCUMENTS = (500, 1000, 1000, 1000, 2000, 2000, 2000, 3000, 5000, 10000)
LOST = 1 / 3600
"""How often a worker is lost, a second: once in an hour, as machines that may be taken away at any time."""

ASSUMED = f"""{MODELS} models of about 8B, each with {TRAININGS} trainings and {EVALUATIONS} evaluations, are
{MODELS * (TRAININGS + EVALUATIONS)} cells. A worker loads a model in {LOAD:.0f} s; a training takes {TRAINING:.0f} s
(median; log-normal, sigma 0.5); a document takes {DOCUMENT:g} s under all {TRAININGS} boosters at once, tasks have
{min(DOCUMENTS)} to {max(DOCUMENTS)} documents; laying out the requests of a task takes {LAID:.0f} s for each share, and
its metrics {METRICS * 1000:.0f} ms a document, on one worker."""


@dataclass
class Imagined:
    """Work of which only the cells are known."""

    models: tuple[str, ...] = tuple(f"model{number}" for number in range(MODELS))

    def open(self, model: int, folder: Path) -> Any:
        """Is never called."""
        raise NotImplementedError


def described() -> Description:
    """The cells of each model."""
    trainings = tuple(Training(f"train {number}", f"boosters/{number}", "") for number in range(TRAININGS))
    every = tuple(range(TRAININGS))
    return Description((), trainings, tuple(Evaluated(f"evaluate {n}", every, n, False) for n in DOCUMENTS))


@dataclass
class Imaginary:
    """A pool of workers that take their time without spending any."""

    count: int
    overhead: float
    lost: float = 0.0
    now: float = 0.0
    busy: float = 0.0
    near: float = 0.0
    losses: int = 0
    ends: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Starts the workers."""
        self._draw = random.Random(0)
        self._model: dict[int, int] = {}
        self._due: list[tuple[float, int, Cell | None, bool]] = [(0.0, worker, None, False) for worker in self.workers]

    @property
    def workers(self) -> set[int]:
        """All of them."""
        return set(range(self.count))

    def share(self, value: Any) -> Any:
        """Costs nothing."""
        return None

    def start(self, worker: int, cell: Cell) -> None:
        """Begins a cell, after what was handed out before it."""
        self.near = max(self.near, self.now) + self.overhead
        seconds = 0.0 if self._model.get(worker) == cell.model else LOAD
        self._model[worker] = cell.model
        seconds += self._seconds(cell)
        until = self._draw.expovariate(self.lost) if self.lost else seconds + 1
        self.busy += min(seconds, until)
        heapq.heappush(self._due, (self.near + min(seconds, until), worker, cell, until < seconds))

    def wait(self) -> list[tuple[int, Outcome | None]]:
        """Goes on to when the next cell ends."""
        self.now, worker, cell, lost = heapq.heappop(self._due)
        if cell is None:
            return [(worker, None)]
        if lost:
            self.losses += 1
            self._model.pop(worker)
            heapq.heappush(self._due, (self.now + LOAD, worker, None, False))
            return [(worker, Failure("lost", lost=True))]
        self.ends[cell.method] = self.now
        return [(worker, Success(_value(cell)))]

    def _seconds(self, cell: Cell) -> float:
        documents = int(cell.label.split("evaluate ")[1].split(",")[0]) if "evaluate" in cell.label else 0
        if cell.method == "train":
            return self._draw.lognormvariate(0, 0.5) * TRAINING
        if cell.method == "answer":
            return LAID + documents * DOCUMENT / cell.arguments[-1].count
        if cell.method == "finish":
            answered = len(cell.arguments[-1]) > 0
            return LAID + documents * (METRICS + (0 if answered else DOCUMENT))
        return 1.0


def _value(cell: Cell) -> Any:
    made: Mapping[str, Any] = {
        "describe": described(),
        "train": {f"boosters/{cell.arguments[0]}": b""} if cell.arguments else {},
        "result": f"results/{cell.model}-{cell.arguments[0] if cell.arguments else 0}.json",
        "answer": f"{cell.model} {cell.label}".encode(),
        "finish": Finished({}),
    }
    return made[cell.method]


class Simulated(DistributedStudy):
    """A study whose boosters are not looked at."""

    @staticmethod
    def fits(data: bytes, training: Training) -> bool:
        """They are imaginary."""
        return True


def simulated(pool: Imaginary, workers: Workers, name: str) -> float:
    """Hours until a study is done."""
    storage = Storage(f"memory://simulated/{name}")
    Simulated(Imagined(), storage, pool, workers, lambda finished: None, Reports()).run()
    return pool.now / 3600


@click.command()
@click.option("--gpus", default=64, show_default=True)
@click.option("--overhead", default=0.002, show_default=True, help="Seconds that the near end spends on a cell.")
def main(gpus: int, overhead: float) -> None:
    """Print the table of docs/cost.md."""
    click.echo(ASSUMED + "\n")
    click.echo("| study | hours | busy | GPU hours | hours at best | workers lost |\n|---|--:|--:|--:|--:|--:|")
    for name, workers, seconds, lost in (
        ("evaluations in shares", Workers(), overhead, 0.0),
        ("evaluations whole", Workers(documents=10**6), overhead, 0.0),
        ("shares, each worker lost once an hour", Workers(), overhead, LOST),
        ("shares, 1 s a cell at the near end", Workers(), 1.0, 0.0),
    ):
        pool = Imaginary(gpus, seconds, lost)
        hours = simulated(pool, workers, name)
        work = pool.busy / 3600
        click.echo(
            f"| {name} | {hours:.2f} | {work / gpus / hours:.0%} | {work:.1f} | {work / gpus:.2f} | {pool.losses} |"
        )


if __name__ == "__main__":
    main()
