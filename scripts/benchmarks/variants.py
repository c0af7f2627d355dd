"""What an evaluation does outside the forward passes, as the number of variants grows."""

from __future__ import annotations

import time
from typing import Any
from unittest import mock

from material import many, model
from timing import Measured, Outcome, alternate, median


def outside_passes(task: str, shots: int, count: int, docs: int, reps: int) -> Outcome:
    """A baseline and `count - 1` boosters against a baseline and one: seconds outside `Engine.loglikelihoods`.

    Tasks, prompts, tokens, metrics, samples and paired rows: all that `aft evaluate` does but for the forward passes.
    Tasks are loaded before, as they are for a study.
    """
    from aft_harness.harness.tasks import Tasks

    lm, source = model("steered-hf", "float32"), Tasks()
    source.load([task])
    evaluated = {size: _timed(lm, source, task, shots, size, docs) for size in (2, count)}  # so that none is the first
    first, second = alternate(
        lambda: _timed(lm, source, task, shots, count, docs), lambda: _timed(lm, source, task, shots, 2, docs), reps
    )
    ratio = median(first) / median(second)
    inside = {size: run.results for size, run in evaluated.items()}
    note = (
        f"seconds outside the forward passes of evaluate() and rows(): {median(first):.2f} for {count} variants, "
        f"{median(second):.2f} for 2, {ratio:.2f} times as long; inside: {inside[count]:.1f} and {inside[2]:.1f}"
    )
    return Outcome("2 variants", "float32", docs, median(first), median(second), note=note)


def _timed(lm: Any, source: Any, task: str, shots: int, count: int, docs: int) -> Measured:
    """Seconds outside the passes; the result is the seconds inside."""
    from aft_harness.boosters.variant import BASELINE
    from aft_harness.harness.evaluation import evaluate
    from aft_harness.harness.selection import PromptFormat
    from aft_harness.results.runs import rows

    inside = 0.0
    score = lm.engine.loglikelihoods

    def scored(*args: Any, **options: Any) -> Any:
        nonlocal inside
        start = time.perf_counter()
        results = score(*args, **options)
        inside += time.perf_counter() - start
        return results

    with mock.patch.object(lm.engine, "loglikelihoods", scored):
        start = time.perf_counter()
        found = evaluate(lm, [BASELINE, *many(count - 1)], [task], PromptFormat(shots), source=source, limit=docs)
        rows([each.run for each in found])
        total = time.perf_counter() - start
    return Measured(total - inside, inside)
