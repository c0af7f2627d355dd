"""Hands cells to workers as these become free, and again to another where one was lost.

Knows cells by their labels. Where workers run, and how a cell reaches one, is a pool's work (`ray_pool.py`); what
follows from a result, the study's (`distributed.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from aft_harness.errors import StudyError
from aft_harness.progress import ignore
from aft_harness.studies.worker import Failure, Outcome, Success

ATTEMPTS = 3
"""Times that a cell may fail."""


@dataclass
class Cell:
    """Something for a worker to do.

    Attributes:
        label: What messages call it.
        model: By its place; a worker holds one at a time.
        method: Of `Worker`.
        arguments: Of the method, beside the model.
        done: Called with what came out; gives the cells that can run now. A `StudyError` says that it is of no use.
        failed: Called when it has failed for good; gives the cells that can run without it.
        failures: Why it failed, each time.
        avoided: Workers that it failed on.
    """

    label: str
    model: int
    method: str
    arguments: tuple[Any, ...]
    done: Callable[[Any], Iterable[Cell]]
    failed: Callable[[], Iterable[Cell]] = tuple
    failures: list[str] = field(default_factory=list)
    avoided: set[int] = field(default_factory=set)


class Pool(Protocol):
    """Workers, each with one cell at a time."""

    @property
    def workers(self) -> set[int]:
        """Those that are there, or will be."""

    def share(self, value: Any) -> Any:
        """What stands for a value that goes to many cells."""

    def start(self, worker: int, cell: Cell) -> None:
        """Hands a cell to a worker that is free."""

    def wait(self) -> list[tuple[int, Outcome | None]]:
        """Waits until something happened.

        Returns:
            Workers with what became of their cells, or None where a worker is free for the first time. A worker that is
            lost is free again when that is said anew.

        Raises:
            StudyError: No worker is left, or one is not fit.
        """


@dataclass(frozen=True)
class FailedCell:
    """A cell that failed each time.

    Attributes:
        label: What messages call it.
        message: Why, the last time.
    """

    label: str
    message: str


class Dispatcher:
    """Runs cells until there are none left."""

    def __init__(
        self,
        pool: Pool,
        cells: Iterable[Cell],
        note: Callable[[str], None] = ignore,
        on_done: Callable[[int, int, str], None] = ignore,
    ) -> None:
        """Starts nothing yet.

        Args:
            pool: The workers.
            cells: What can run at once.
            note: Called with what users should know.
            on_done: Called with how many cells are done, of how many that are known of, and the label of the last.
        """
        self._pool, self._note, self._on_done = pool, note, on_done
        self._ready = list(cells)
        self._running: dict[int, Cell] = {}
        self._free: list[int] = []
        self._model: dict[int, int] = {}
        self._finished = 0
        self._said: set[str] = set()
        self.failed: list[FailedCell] = []

    def run(self) -> list[FailedCell]:
        """Runs all cells, and those that follow from them.

        Returns:
            What failed for good.

        Raises:
            StudyError: See `Pool.wait`.
        """
        while self._ready or self._running:
            self._assign()
            for worker, outcome in self._pool.wait():
                cell = self._running.pop(worker, None)
                if not (isinstance(outcome, Failure) and outcome.lost):
                    self._free.append(worker)
                if cell is None or outcome is None:
                    continue
                if isinstance(outcome, Success):
                    self._succeeded(cell, worker, outcome)
                else:
                    self._stumbled(cell, worker, outcome)
        return self.failed

    def _assign(self) -> None:
        for worker in list(self._free):
            cell = self._next(worker)
            if cell is not None:
                self._free.remove(worker)
                self._ready.remove(cell)
                self._running[worker] = cell
                self._model[worker] = cell.model
                self._pool.start(worker, cell)

    def _next(self, worker: int) -> Cell | None:
        """The first cell of the model that the worker holds, else the first of all; not one that it failed."""
        others = self._pool.workers
        fit = [cell for cell in self._ready if worker not in cell.avoided or others <= cell.avoided]
        held = self._model.get(worker)
        return next((cell for cell in fit if cell.model == held), fit[0] if fit else None)

    def _succeeded(self, cell: Cell, worker: int, outcome: Success) -> None:
        for warning in outcome.warnings:
            if warning not in self._said:  # which every worker may have said
                self._said.add(warning)
                self._note(f"{cell.label}: {warning}")
        try:
            following = list(cell.done(outcome.value))
        except StudyError as error:
            self._stumbled(cell, worker, Failure(str(error)))
            return
        self._ready += following
        self._count(cell)

    def _stumbled(self, cell: Cell, worker: int, outcome: Failure) -> None:
        cell.failures.append(outcome.message)
        cell.avoided.add(worker)
        if len(cell.failures) < ATTEMPTS:
            self._note(f"{cell.label}: {outcome.message}; trying again ({len(cell.failures) + 1} of {ATTEMPTS})")
            self._ready.insert(0, cell)
            return
        self._note(f"{cell.label}: {outcome.message}; failed {ATTEMPTS} times, going on without it")
        self.failed.append(FailedCell(cell.label, outcome.message))
        self._ready += cell.failed()
        self._count(cell)

    def _count(self, cell: Cell) -> None:
        self._finished += 1
        self._on_done(self._finished, self._finished + len(self._running) + len(self._ready), cell.label)


def refuse_failed(failed: list[FailedCell], place: object) -> None:
    """Ends a study of which some cells failed, after all others are done.

    Raises:
        StudyError: With the first of them.
    """
    if failed:
        many = f"{len(failed)} cells" if len(failed) > 1 else "1 cell"
        first = f"{failed[0].label}: {failed[0].message}"
        raise StudyError(
            f"{many} failed {ATTEMPTS} times, first {first}; everything else is done and kept in {place}: "
            "rerun the same command to try again"
        )
