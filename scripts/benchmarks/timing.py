"""What a benchmark finds, and how two sides are timed against each other. Knows seconds and scores; runs no model."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Scores = Sequence[tuple[float, bool]]

Groups = Sequence[tuple[int, int, list[int]]]
"""Of each document: where its requests start and end, and how long its choices are."""


@dataclass(frozen=True)
class Measured:
    """What a run of one side took and gave."""

    seconds: float
    results: Any


@dataclass(frozen=True)
class Outcome:
    """A row of the table, without what is the same for all.

    Attributes:
        peer: What ours was compared with; empty where nothing was.
        dtype: Of our model's weights.
        documents: Documents or training examples.
        ours: Median seconds.
        theirs: Median seconds of the peer.
        difference: Largest |difference| of loglikelihoods, or of epochs' mean losses.
        agreement: Share of documents with the same answer or text.
        operations: Floating-point operations that the work needs.
        note: What else was found.
        batch_size: Rows a pass, or examples an optimiser step.
    """

    peer: str
    dtype: str
    documents: int
    ours: float
    theirs: float | None = None
    difference: float | None = None
    agreement: float | None = None
    operations: float | None = None
    note: str = ""
    batch_size: int = 16

    @property
    def ratio(self) -> float | None:
        """How many times as long the peer takes."""
        return None if self.theirs is None else self.theirs / self.ours


def alternate(
    ours: Callable[[], Measured], theirs: Callable[[], Measured], reps: int
) -> tuple[list[Measured], list[Measured]]:
    """Runs both sides so many times, each of them first in every second pair."""
    pairs = [(ours(), theirs()) if rep % 2 == 0 else (theirs(), ours())[::-1] for rep in range(reps)]
    return [left for left, _ in pairs], [right for _, right in pairs]


def median(runs: Sequence[Measured]) -> float:
    """Median seconds."""
    return statistics.median(run.seconds for run in runs)


def difference(left: Scores, right: Scores) -> float:
    """Largest |difference| of loglikelihoods."""
    return max(abs(first - second) for (first, _), (second, _) in zip(left, right, strict=True))


def agreement(left: Scores, right: Scores, groups: Groups) -> float:
    """Share of documents on which both choose the same answer, by sum and by length-normalised sum."""

    def choices(scores: Scores) -> Iterator[tuple[int, int]]:
        for start, end, lengths in groups:
            sums = [score for score, _ in scores[start:end]]
            normed = [score / length for score, length in zip(sums, lengths, strict=True)]
            yield sums.index(max(sums)), normed.index(max(normed))

    return statistics.mean(float(first == second) for first, second in zip(choices(left), choices(right), strict=True))


def compared(
    peer: str,
    dtype: str,
    docs: int,
    ours: Sequence[Measured],
    theirs: Sequence[Measured],
    groups: Groups,
    operations: float | None = None,
    note: str = "",
) -> Outcome:
    """The outcome of two sides that scored the same requests."""
    left, right = ours[0].results, theirs[0].results
    return Outcome(
        peer,
        dtype,
        docs,
        median(ours),
        median(theirs),
        difference(left, right),
        agreement(left, right, groups),
        operations,
        note,
    )
