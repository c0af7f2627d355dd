"""What commands show: progress bars on stderr, and results as lines of text."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aft_harness.harness.examples import TaskExamples
    from aft_harness.studies.sweep import Point
    from aft_harness.training.train import Trained


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the libraries' own bars and notices off the screen; warnings of aft_harness stay."""
    import logging

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # before tqdm is imported: lm-eval's own bars obey it too
    from datasets.utils.logging import disable_progress_bar, set_verbosity_error
    from transformers.utils import logging as transformers_logging

    set_verbosity_error()
    disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING, stream=sys.stderr)
    yield


@contextmanager
def training_bar() -> Iterator[Callable[..., None]]:
    """A bar over optimiser steps, to be told a `training.Progress` and, of several trainings, which one it is."""
    from tqdm import tqdm

    with tqdm(unit="step", disable=None, file=sys.stderr, dynamic_ncols=True) as bar:

        def update(progress: Any, prefix: str = "") -> None:
            bar.total = progress.steps
            bar.set_description(prefix + progress.stage)
            if progress.step:
                bar.set_postfix(epoch=progress.epoch, loss=f"{progress.loss:.4f}", refresh=False)
            bar.update(progress.step - bar.n)

        yield update


@contextmanager
def counting_bar(description: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar to be told how much is done, of how much; it appears when there is something to tell."""
    from tqdm import tqdm

    with ExitStack() as shown:
        bars: list[Any] = []

        def update(done: int, total: int) -> None:
            if not bars:
                bar = tqdm(desc=description, unit=unit, disable=None, file=sys.stderr, dynamic_ncols=True)
                bars.append(shown.enter_context(bar))
            bars[0].total = total
            bars[0].update(done - bars[0].n)

        yield update


def said(task: TaskExamples) -> str:
    """How many documents of a task are used, and how many were dropped and why."""
    counts = {"training": len(task.train), "development": len(task.development)}
    told = [f"{count} {role} documents" for role, count in counts.items() if count]
    parts = [f"{task.task}: {' and '.join(told) or 'no documents'} of {task.split}"]
    if task.overlapping:
        parts.append(f"{task.overlapping} dropped that the evaluated split also holds")
    if task.goldless:
        parts.append(f"{task.goldless} dropped without a usable answer")
    return ", ".join(parts)


def summary(trained: Trained, output: str) -> str:
    """What a training made."""
    lines = [("booster", f"{output} ({os.path.getsize(output):,} bytes)"), ("sha256", trained.booster.sha256)]
    for name, result in (("before", trained.before), ("after", trained.after)):
        lines.append((name, f"{score(result.loss, result.accuracy)} on {result.n} {trained.measured_on} documents"))
    lines.append(("epoch", f"{trained.kept_epoch} kept of {len(trained.epoch_losses)}"))
    for layer, ratio in trained.relative_norm.items():
        lines.append((f"layer {layer}", f"norm of the delta is {ratio:.1%} of the residual stream's"))
    memory = f", peak memory {trained.peak_memory / 2**30:.2f} GiB" if trained.peak_memory else ""
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in trained.stages.items())
    lines.append(("cost", f"{trained.seconds:.1f} s ({stages}){memory}"))
    return "\n".join(f"{name:<10}{value}" for name, value in lines)


def score(loss: float, accuracy: float | None) -> str:
    """A loss and, where there is one, an accuracy."""
    return f"loss {loss:.4f}" + ("" if accuracy is None else f", accuracy {accuracy:.1%}")


def sweep_table(points: Sequence[Point]) -> str:
    """A sweep as text: development scores, then each test result; a star marks what development documents chose."""
    from aft_harness.results.report import said as paired_said

    lines = []
    for point in points:
        star = "*" if point.chosen else " "
        development = score(point.development.loss, point.development.accuracy)
        lines.append(f"{star} {point.variant.name}: {development} on {point.development.n} development documents")
        lines += [f"    {task} {metric}: {paired_said(paired)}" for task, metric, paired in point.tests]
    lines.append("* chosen on development documents; the best of many test results would not be a result")
    return "\n".join(lines)
