"""Loglikelihoods of multiple-choice tasks: against lm-eval's model types, with boosters, and as work grows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from machine import operations, tokens
from material import booster, model, requests
from timing import Groups, Measured, Outcome, Scores, agreement, alternate, compared, difference, median

STRENGTHS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)


def against(peer: str, task: str, shots: int, dtype: str, docs: int, reps: int, sampler: str = "default") -> Outcome:
    """One task: `steered-hf`, steered where the peer is, against a model type of lm-eval."""
    ours, theirs = _steered(dtype) if peer == "steered" else model("steered-hf", dtype), model(peer, dtype)
    asked, groups = requests(task, shots, docs, sampler)
    run = partial(timed, asked=asked)
    warm(ours, theirs, asked)
    first, second = alternate(lambda: run(ours), lambda: run(theirs), reps)
    note = _noise(theirs, asked, groups, first[0].results, second[0].results) if dtype == "bfloat16" else ""
    needed = operations(ours, [ours.encode(*request.args) for request in asked])
    return compared(peer, dtype, docs, first, second, groups, needed, note)


def _steered(dtype: str) -> Any:
    from aft_harness.boosters.variant import Variant

    return model("steered-hf", dtype).with_variant(Variant("booster", booster()))


def _noise(theirs: Any, asked: Sequence[Any], groups: Groups, ours: Scores, stock: Scores) -> str:
    """What rounding does to stock: against itself at another batch size, and either side against stock in float32."""
    theirs.batch_size_per_gpu = 1
    alone = timed(theirs, asked).results
    theirs.batch_size_per_gpu = 16
    fine = timed(model("hf", "float32"), asked).results
    return "; ".join(
        f"{name}: agreement {agreement(left, right, groups):.1%}, difference {difference(left, right):.1e}"
        for name, left, right in (
            ("hf at batch size 1 against itself at 16", alone, stock),
            ("ours against hf in float32", ours, fine),
            ("hf against hf in float32", stock, fine),
        )
    )


def strengths(task: str, docs: int, reps: int) -> Outcome:
    """Baseline and nine strengths in one pass against ten stock runs, of which one is timed and taken ten times."""
    from aft_harness.boosters.variant import BASELINE, Variant

    ours, theirs = model("steered-hf", "float32"), model("steered", "float32")
    asked, groups = requests(task, 0, docs)
    variants = [BASELINE, *(Variant(f"{strength:g}", booster(), strength) for strength in STRENGTHS)]
    warm(ours, theirs, asked)

    def together() -> Measured:
        start = time.perf_counter()
        results = ours.score_variants([ours.encode(*request.args) for request in asked], variants)
        return Measured(time.perf_counter() - start, results[1 + STRENGTHS.index(1.0)])

    def ten_times() -> Measured:
        once = timed(theirs, asked)
        return Measured(10 * once.seconds, once.results)

    first, second = alternate(together, ten_times, reps)
    return compared("ten runs of steered", "float32", docs, first, second, groups)


def overhead(task: str, docs: int, reps: int) -> Outcome:
    """`steered-hf` with a booster against itself without: many short pairs, because what is looked for is small.

    One model in memory serves both: two copies of the same weights differ by some percent for where they lie.
    """
    plain, steered = model("steered-hf", "float32"), _steered("float32")
    asked, _ = requests(task, 0, docs)
    timed(steered, asked)  # also checks the packed rows, which later runs need not
    first, second = alternate(lambda: timed(steered, asked), lambda: timed(plain, asked), 20 * reps)
    ratios = [left.seconds / right.seconds for left, right in zip(first, second, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    note = (
        f"time with a booster over time without, {len(ratios)} pairs: median {middle:.3f}, "
        f"half of them from {low:.3f} to {high:.3f}"
    )
    return Outcome("without a booster", "float32", docs, median(first), median(second), note=note)


def scaling(task: str, shots: int, choices: int | None, docs: int, reps: int) -> Outcome:
    """Our time alone; `choices` keeps the first so many endings of each document."""
    lm = model("steered-hf", "float32")
    asked, groups = requests(task, shots, docs)
    kept = [request for start, end, _ in groups for request in asked[start:end][:choices]]
    warm(lm, lm, kept)
    runs = [timed(lm, kept) for _ in range(reps)]
    encoded = [lm.encode(*request.args) for request in kept]
    read, distinct = sum(len(request.inputs) for request in encoded), tokens(encoded)[0]
    note = f"{len(kept)} requests of {read} tokens, {distinct} of them distinct"
    return Outcome("", "float32", docs, median(runs), operations=operations(lm, encoded), note=note)


def timed(lm: Any, asked: Sequence[Any]) -> Measured:
    """One run over all requests."""
    start = time.perf_counter()
    results = lm.loglikelihood(list(asked), disable_tqdm=True)
    return Measured(time.perf_counter() - start, results)


def warm(ours: Any, theirs: Any, asked: Sequence[Any]) -> None:
    """Lets both sides score a few requests, so that no first time is measured."""
    for lm in (ours, theirs):
        lm.loglikelihood(list(asked[:16]), disable_tqdm=True)
