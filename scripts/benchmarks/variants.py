"""What an evaluation does outside the forward passes, as the number of variants grows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

import numpy as np
from material import many, model
from timing import Measured, Outcome, alternate, median


def outside_passes(task: str, shots: int, count: int, docs: int, reps: int) -> Outcome:
    """A baseline and `count - 1` boosters against a baseline and one: seconds outside the forward passes.

    Prompts, tokens, metrics, samples and paired rows: all that `aft evaluate` does but for the passes, which random
    scores stand in for. Tasks are loaded before, as they are for a study.
    """
    from aft_harness.harness.tasks import Tasks

    lm, source = model("steered-hf", "float32"), Tasks()
    source.load([task])
    for size in (2, count):  # so that neither is the first
        _timed(lm, source, task, shots, size, docs)
    first, second = alternate(
        lambda: _timed(lm, source, task, shots, count, docs), lambda: _timed(lm, source, task, shots, 2, docs), reps
    )
    ratio = median(first) / median(second)
    note = (
        f"seconds outside the forward passes of evaluate() and rows(): {median(first):.2f} for {count} variants, "
        f"{median(second):.2f} for 2, {ratio:.2f} times as long"
    )
    return Outcome("2 variants", "float32", docs, median(first), median(second), note=note)


def _timed(lm: Any, source: Any, task: str, shots: int, count: int, docs: int) -> Measured:
    """Seconds of an evaluation without its passes; the result is the number of rows."""
    from aft_harness.boosters.variant import BASELINE
    from aft_harness.harness.evaluation import evaluate
    from aft_harness.harness.selection import PromptFormat
    from aft_harness.results.runs import rows

    with mock.patch.object(lm.engine, "loglikelihoods", _random_scores):
        start = time.perf_counter()
        found = evaluate(lm, [BASELINE, *many(count - 1)], [task], PromptFormat(shots), source=source, limit=docs)
        compared = rows([each.run for each in found])
        return Measured(time.perf_counter() - start, len(compared))


def _random_scores(
    requests: Sequence[Any], max_tokens: int, *, steerings: Sequence[Any], on_scored: Any, **settings: Any
) -> list[list[tuple[float, bool]]]:
    """What `Engine.loglikelihoods` returns, for as many variants; every variant scores the requests differently."""
    drawn = np.random.default_rng(len(requests)).normal(-20, 5, (len(steerings), len(requests)))
    results = [[(float(value), False) for value in row] for row in drawn]
    on_scored(range(len(requests)), results)
    return results
