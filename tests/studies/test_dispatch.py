"""Cells and workers: who gets what, and what becomes of cells that fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pool_cases import Hands

from aft_harness.errors import StudyError
from aft_harness.studies.dispatch import ATTEMPTS, Cell, Dispatcher, FailedCell, refuse_failed
from aft_harness.studies.worker import Failure, Outcome, Success


def cell(label: str, model: int = 0, then: tuple[Cell, ...] = (), without: tuple[Cell, ...] = ()) -> Cell:
    return Cell(label, model, "", (), lambda value: then, lambda: without)


def fine(worker: int, cell: Cell) -> Outcome:
    return Success(cell.label)


def test_what_follows_runs_and_all_is_counted() -> None:
    last = cell("c")
    counts: list[tuple[int, int, str]] = []
    hands = Hands(2, fine)
    failed = Dispatcher(hands, [cell("a", then=(last,)), cell("b")], on_done=lambda *of: counts.append(of)).run()
    assert failed == [] and sorted(label for _, label in hands.did) == ["a", "b", "c"]
    assert [done for done, _, _ in counts] == [1, 2, 3] and counts[-1][1] == 3
    assert {worker for worker, _ in hands.did} == {0, 1}


def test_a_worker_stays_with_its_model_as_long_as_there_is_work_for_it() -> None:
    hands = Hands(1, fine)
    cells = [cell("a", 0), cell("x", 1), cell("b", 0), cell("y", 1), cell("c", 0)]
    Dispatcher(hands, cells).run()
    assert [label for _, label in hands.did] == ["a", "b", "c", "x", "y"]


def test_a_lost_cell_is_tried_again_on_another_worker() -> None:
    lost: Iterator[bool] = iter([True])
    notes: list[str] = []

    def act(worker: int, cell: Cell) -> Outcome:
        if cell.label == "a" and next(lost, False):
            return Failure("the worker was lost (killed)", lost=True)
        return Success(None)

    hands = Hands(2, act)
    assert Dispatcher(hands, [cell("a"), cell("b"), cell("c")], notes.append).run() == []
    first, second = (worker for worker, label in hands.did if label == "a")
    assert first != second
    assert notes == ["a: the worker was lost (killed); trying again (2 of 3)"]


@pytest.mark.parametrize("count", [1, 2])
def test_a_cell_that_fails_three_times_is_reported_and_the_rest_goes_on(count: int) -> None:
    notes: list[str] = []

    def act(worker: int, cell: Cell) -> Outcome:
        return Failure("no memory") if cell.label == "a" else Success(None)

    hands = Hands(count, act)
    without = cell("without a")
    failed = Dispatcher(hands, [cell("a", without=(without,)), cell("b")], notes.append).run()
    assert failed == [FailedCell("a", "no memory")]
    labels = [label for _, label in hands.did]
    assert labels.count("a") == ATTEMPTS and labels.count("b") == 1 and labels[-1] == "without a"
    assert notes[-1] == "a: no memory; failed 3 times, going on without it"
    with pytest.raises(StudyError, match=r"1 cell failed 3 times, first a: no memory; everything else .* in work"):
        refuse_failed(failed, "work")
    refuse_failed([], "work")


def test_what_is_of_no_use_counts_as_a_failure() -> None:
    given: list[Any] = []

    def done(value: Any) -> list[Cell]:
        given.append(value)
        if value == 0:
            raise StudyError("made something else")
        return []

    hands, notes = Hands(2, lambda worker, cell: Success(worker)), list[str]()
    assert Dispatcher(hands, [Cell("a", 0, "", (), done)], notes.append).run() == []
    assert given == [0, 1] and notes == ["a: made something else; trying again (2 of 3)"]


def test_a_warning_that_every_worker_gives_is_shown_once() -> None:
    notes: list[Any] = []
    Dispatcher(Hands(2, lambda worker, cell: Success(None, ("careful",))), [cell("a"), cell("b")], notes.append).run()
    assert notes == ["a: careful"]
