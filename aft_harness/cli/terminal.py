"""What commands show: progress bars on stderr, and results as lines of text."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from aft_harness.cli.app import note, verbosity
from aft_harness.text import printable

if TYPE_CHECKING:
    from aft_harness.boosters.booster import Booster
    from aft_harness.boosters.provenance import Score
    from aft_harness.harness.blueprint import Forecast
    from aft_harness.harness.examples import TaskExamples
    from aft_harness.progress import TrainingProgress
    from aft_harness.studies.sweep import Sweep
    from aft_harness.studies.transfer import Reports
    from aft_harness.training.result import TrainingResult

MANY_LAYERS = 4
"""More layers than this are described together."""

_SHOWN = 300
"""Characters of a prompt, from its end."""

_SHORT = {"tokens_per_second": "tok/s"}
"""What the bar calls further figures."""

_WIDTH = 160
"""Characters of a line that shows somebody's text."""


HUB_TIMEOUT = 5.0
"""Seconds that the hub has to answer in."""


def offline_if_unreachable() -> None:
    """Sets `HF_HUB_OFFLINE` where nothing is said of it and the hub cannot be reached.

    The libraries retry every file for half a minute before they take what is in their caches. They read the setting
    when they are imported.
    """
    if "HF_HUB_OFFLINE" in os.environ or "HF_DATASETS_OFFLINE" in os.environ:
        return
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    asked = Request(os.environ.get("HF_ENDPOINT") or "https://huggingface.co", method="HEAD")
    try:
        with suppress(HTTPError), urlopen(asked, timeout=HUB_TIMEOUT):  # whatever it answers
            pass
    except (OSError, ValueError) as error:
        os.environ["HF_HUB_OFFLINE"] = "1"
        reason = getattr(error, "reason", error)
        note(f"the Hugging Face Hub cannot be reached ({reason}); using cached files only")


@contextmanager
def quiet(*, hub: bool = True) -> Iterator[None]:
    """Keeps the libraries' bars and notices off the screen; warnings of aft_harness stay.

    With --verbose their notices are shown too, with --quiet no warnings. Their bars, of which nobody could tell what
    they count, give way to ours.

    Args:
        hub: Models or data sets may be on the hub; see `offline_if_unreachable`.
    """
    import logging

    if hub:
        offline_if_unreachable()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    given = "TQDM_DISABLE" in os.environ
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported
    from datasets.utils import logging as datasets_logging
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    datasets_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    if verbosity() <= 0:
        for library in (datasets_logging, hub_logging, transformers_logging):
            library.set_verbosity_error()
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # Each of these has a handler of its own, beside which the root's would say everything again.
    for name in ("datasets", "huggingface_hub", "transformers"):
        logging.getLogger(name).propagate = False
    level = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}[verbosity()]
    logging.basicConfig(format="%(levelname)s: %(message)s", level=level, stream=sys.stderr)
    try:
        yield
    finally:
        if not given:  # programs that are started afterwards have bars of their own
            os.environ.pop("TQDM_DISABLE", None)


def _bar(description: str, unit: str, total: int) -> Any:
    """A bar on stderr, where that is a terminal and the command is not to be quiet."""
    from tqdm import tqdm

    hidden = not sys.stderr.isatty() or verbosity() < 0  # said outright: ours do not obey TQDM_DISABLE
    return tqdm(desc=description, unit=unit, total=total, disable=hidden, file=sys.stderr, dynamic_ncols=True)


@contextmanager
def training_bar() -> Iterator[Callable[..., None]]:
    """A bar over optimiser steps, fed with a `TrainingProgress` and, of several trainings, which it is."""
    with ExitStack() as shown:
        bars: list[Any] = []

        def update(progress: TrainingProgress, which: str = "") -> None:
            description = f"{which}: {progress.stage}" if which else progress.stage
            if not bars:
                bars.append(shown.enter_context(_bar(description, "step", progress.steps)))
            bar = bars[0]
            bar.total = progress.steps
            bar.set_description(description)
            if progress.step:
                measured = {_SHORT.get(name, name): f"{value:.3g}" for name, value in progress.measures.items()}
                bar.set_postfix(epoch=progress.epoch, loss=f"{progress.loss:.4f}", **measured, refresh=False)
            bar.update(progress.step - bar.n)

        yield update


@contextmanager
def counting_bar(description: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar fed with how much is done, and of how much; it appears with the first of these."""
    with ExitStack() as shown:
        bars: list[Any] = []

        def update(done: int, total: int) -> None:
            if not bars:
                bars.append(shown.enter_context(_bar(description, unit, total)))
            bars[0].total = total
            bars[0].update(done - bars[0].n)

        yield update


@contextmanager
def study_bars() -> Iterator[Reports]:
    """Bars of a study: one for each cell, that of the cell before going away."""
    from aft_harness.studies.transfer import Reports

    with ExitStack() as shown:
        present: dict[str, Any] = {}

        def cell(number: int, total: int, name: str) -> None:
            shown.close()
            which = f"{number} of {total}, {name}"
            bar = shown.enter_context(training_bar())
            present["training"] = lambda progress: bar(progress, which)
            present["evaluation"] = shown.enter_context(counting_bar(which, "request"))

        yield Reports(
            cell=cell,
            training=lambda progress: present["training"](progress),
            evaluation=lambda done, total: present["evaluation"](done, total),
            examples=note_examples,
        )


@contextmanager
def cell_bar() -> Iterator[Reports]:
    """A bar of a study whose cells run elsewhere: over its cells, as far as they are known."""
    from aft_harness.studies.transfer import Reports

    with counting_bar("cells", "cell") as update:
        yield Reports(cell=lambda done, total, label: update(done, total), note=note)


def note_examples(examples: TaskExamples) -> None:
    """Says on stderr how many documents of a task are used."""
    note(examples)


def show_examples(examples: TaskExamples) -> None:
    """Says on stderr how many documents of a task are used, and shows what is learned from the first."""
    note_examples(examples)
    if not examples.train:
        return
    first = examples.train[0]
    prompt = first.shown if len(first.shown) <= _SHOWN else f"…{first.shown[-_SHOWN:]}"
    what = "* marks the target" if examples.judge is None else f"texts are judged by {examples.judge.reward}"
    note(f"First training document of {examples.task} ({what}):")
    for line in prompt.splitlines():
        _note_line(line)
    for index, choice in enumerate(first.choices if examples.judge is None else ()):
        begun, *rest = choice.strip().splitlines() or [""]
        _note_line(f"{'*' if index in first.gold else '-'} {begun}{' …' if rest else ''}")


def _note_line(text: str) -> None:
    """A line of somebody's text on stderr."""
    note(f"| {printable(text)}"[:_WIDTH])


def training_summary(result: TrainingResult, output: Path) -> str:
    """What a training made."""
    found = [("booster", f"{output} ({os.path.getsize(output):,} bytes)"), ("sha256", result.booster.sha256)]
    for name, measured in (("before", result.before), ("after", result.after)):
        found.append((name, f"{score(measured)} on {measured.n} {result.measured_on} documents"))
    development = result.losses.groupby("epoch")["development_loss"].last()
    for epoch, loss in enumerate(result.epoch_losses, start=1):
        held_out = f", development {development[epoch]:.4f}" if result.measured_on == "development" else ""
        star = "*" if epoch == result.kept_epoch else " "
        found.append((f"epoch {epoch}{star}", f"mean training loss {loss:.4f}{held_out}"))
    divergence = result.losses.groupby("epoch")["divergence"].mean()[result.kept_epoch]
    if not math.isnan(divergence):
        found.append(("plain text", f"divergence {divergence:.4f} nats per token from the unchanged model"))
    for layer, tried in (result.booster.provenance.layer_sweep or {}).items():
        star = "*" if int(layer) in result.booster.layers else " "
        found.append((f"layer {layer}{star}", f"{score(tried)} on {tried.n} development documents"))
    ratios = result.relative_norm
    if len(ratios) > MANY_LAYERS:
        top = max(ratios, key=lambda layer: ratios[layer])
        typical = f"median {median(ratios.values()):.1%} of the residual stream's norm"
        found.append(("delta", f"{typical}, largest {ratios[top]:.1%} at layer {top}"))
    else:
        found += [
            (f"layer {layer}", f"delta {ratio:.1%} of the residual stream's norm") for layer, ratio in ratios.items()
        ]
    memory = f", peak memory {result.peak_memory / 2**30:.2f} GiB" if result.peak_memory else ""
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in result.stages.items())
    found.append(("cost", f"{result.seconds:.1f} s ({stages}){memory}"))
    shown = [*lines(found), "* kept"]
    if result.held_out is not None:
        from aft_harness.results import table

        shown += ["", "On held-out pairs:", table.render(result.held_out, "table")]
    return "\n".join(shown)


def forecast_summary(forecast: Forecast) -> str:
    """What a training or an evaluation will take."""
    uses = ", ".join(f"{use} {size / 2**30:.2f}" for use, size in forecast.memory.items())
    stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in forecast.seconds.items())
    found = [("work", forecast.work)] if forecast.work else []
    found += [
        ("memory", f"about {forecast.peak / 2**30:.1f} GiB ({uses})"),
        ("time", f"about {duration(forecast.duration)} ({stages}), and loading the model"),
    ]
    if forecast.spilled:
        found.append(("disk", f"{forecast.spilled / 2**30:.1f} GiB of temporary files"))
    return "\n".join(lines(found))


def score(result: Score) -> str:
    """A loss by its name and, where there is one, an accuracy."""
    accuracy = "" if result.accuracy is None else f", accuracy {result.accuracy:.1%}"
    return f"{result.measure or 'loss'} {result.loss:.4f}{accuracy}"


def sweep_summary(found: Sweep) -> str:
    """A sweep as text: development scores, then the test results; a star marks what development documents chose."""
    from aft_harness.results import table

    development = [("unchanged model", score(found.unchanged))]
    development += [
        (f"{point.variant.name}{' *' if point.chosen else ''}", score(point.development)) for point in found.points
    ]
    return "\n".join(
        [
            f"On {found.unchanged.n} development documents, where the lowest ranking loss is chosen:",
            *lines(development),
            "",
            "On test documents:",
            table.render(found.frame, "table"),
            "",
            "* chosen on development documents; choosing by test results would bias them",
        ]
    )


def layer_lines(booster: Booster) -> list[tuple[str, str]]:
    """What a booster has at its layers; very many are described together."""
    from aft_harness.boosters.injections import ContextualInjection, Injection
    from aft_harness.boosters.layers import ranges

    def described(injection: Injection) -> str:
        if isinstance(injection, ContextualInjection):
            return f"contextual, rank {injection.rank}, {injection.activation}, input norm {injection.input_norm}"
        return f"{injection.spec['kind']}, norm {float(injection.tensors['vector'].norm()):.4f}"

    static = [part for part in booster.injections.values() if "vector" in part.tensors]
    if len(static) == len(booster.layers) > MANY_LAYERS:
        norms = [float(part.tensors["vector"].norm()) for part in static]
        spread = f"norms {min(norms):.4f} to {max(norms):.4f}, median {median(norms):.4f}"
        return [(f"layers {ranges(booster.layers)}", f"static, {spread}")]
    return [(f"layer {layer}", described(injection)) for layer, injection in booster.injections.items()]


def lines(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Names and values, aligned."""
    width = max(len(name) for name, _ in pairs) + 2
    return [f"{name:<{width}}{value}" for name, value in pairs]


def duration(seconds: float) -> str:
    """A time that is estimated."""
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
