"""What handing a cell to a worker costs: cells that do nothing, on workers of a Ray cluster of this machine.

The peer is an actor of Ray that is called without anything of ours around it. Knows no model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timing import Measured, Outcome, alternate, median

from aft_harness.studies import ray_pool
from aft_harness.studies.dispatch import Cell, Dispatcher
from aft_harness.studies.workers import Place, Workers

CELLS = 1000
"""Calls that are timed together."""

WORKERS = 2


@dataclass(frozen=True)
class Nothing:
    """Work whose cells do nothing."""

    models: tuple[str, ...] = ("none",)

    def open(self, model: int, folder: Path) -> Any:
        """Loads nothing."""
        return self

    def describe(self) -> None:
        """Is what each cell asks for."""


class Idle:
    """An actor that does nothing."""

    def nothing(self) -> None:
        """Does it."""


def dispatched(pool: ray_pool.RayPool) -> Measured:
    """Seconds of a cell that our dispatcher hands out."""
    # Beyond the first for each worker, which greets it.
    cells = [Cell(str(number), 0, "describe", (), lambda value: ()) for number in range(CELLS)]
    dispatcher = Dispatcher(pool, cells)
    dispatcher._free = sorted(pool.workers)
    start = time.perf_counter()
    failed = dispatcher.run()
    return Measured((time.perf_counter() - start) / CELLS, failed)


def called(actors: list[Any]) -> Measured:
    """Seconds of a call of an actor, with one call each at a time."""
    import ray

    calls = {actor.nothing.remote(): actor for actor in actors}
    start, done = time.perf_counter(), 0
    while done < CELLS:
        (ready, *_), _ = ray.wait(list(calls), num_returns=1)
        actor = calls.pop(ready)
        ray.get(ready)
        done += 1
        calls[actor.nothing.remote()] = actor
    return Measured((time.perf_counter() - start) / CELLS, None)


def overhead(reps: int) -> Outcome:
    """Ours against Ray's own calls, both on workers that are up."""
    import ray

    with ray_pool.opened(Place(count=WORKERS), Nothing(), Workers(cpus=1)) as pool:
        for _ in greetings(pool):
            pass

        idle: Any = ray.remote(num_cpus=0)(Idle)
        actors = [idle.remote() for _ in range(WORKERS)]
        ray.get([actor.nothing.remote() for actor in actors])
        ours, theirs = alternate(lambda: dispatched(pool), lambda: called(actors), reps)
        assert not any(run.results for run in ours)
    note = f"a call on {WORKERS} workers, mean of {CELLS}"
    return Outcome("calls of a Ray actor", "", CELLS, median(ours), median(theirs), note=note, batch_size=1)


def greetings(pool: ray_pool.RayPool) -> Iterator[int]:
    """Waits until every worker is up."""
    waiting = set(pool.workers)
    while waiting:
        for worker, _ in pool.wait():
            waiting.discard(worker)
            yield worker
