"""Which layer, which strength: studies that choose on development documents and report on test documents.

Knows boosters, training and evaluation. Every variant's test result is reported, and the one that development
documents chose is marked: the best of many test results is not a result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from aft_harness.boosters.provenance import Score
from aft_harness.boosters.variant import BASELINE, Variant, distinct
from aft_harness.errors import ParseError, TaskError, TrainingError
from aft_harness.harness import evaluation
from aft_harness.harness.examples import Example, TaskExamples
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.score_store import AnswerStore
from aft_harness.harness.selection import PromptFormat
from aft_harness.harness.shared_pass import SteeredLM
from aft_harness.harness.tasks import Tasks, evaluated_documents
from aft_harness.progress import OnProgress, TrainingProgress, ignore
from aft_harness.results import leaderboard, plots, table
from aft_harness.results.runs import rows
from aft_harness.slices import ALL, Slice
from aft_harness.training import train as training
from aft_harness.training.development import ranking_scores, unseen_examples
from aft_harness.training.identity import trained_before, training_identity
from aft_harness.training.recipe import ChoiceNorm, Settings
from aft_harness.training.result import TrainingResult


@dataclass(frozen=True)
class Test:
    """What a sweep reports on: see `evaluation.evaluate`."""

    __test__ = False  # for pytest

    tasks: Sequence[str]
    prompt_format: PromptFormat = field(default_factory=PromptFormat)
    limit: int | None = None
    docs: Slice | None = None
    source: Tasks | None = None


@dataclass(frozen=True)
class Point:
    """One variant of a sweep.

    Attributes:
        variant: What was evaluated.
        development: What the choice was made by.
        chosen: Whether it is the choice.
        rows: Results on test documents, as rows of the one table schema.
    """

    variant: Variant
    development: Score
    chosen: bool
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        over: The column that varies.
        points: In the order in which they were asked for.
        unchanged: The development score of the unchanged model.
    """

    over: Literal["layers", "strength"]
    points: list[Point]
    unchanged: Score

    @property
    def chosen(self) -> Point:
        """The choice of the development documents."""
        return next(point for point in self.points if point.chosen)

    @property
    def frame(self) -> pd.DataFrame:
        """All rows, with the columns of the development score."""
        found = []
        for point in self.points:
            score = point.development
            development = {
                "development_n": score.n,
                "development_accuracy": score.accuracy,
                "development_loss": score.loss,
                "development_measure": score.measure,
                "chosen": int(point.chosen),
            }
            found += [{**row, **development} for row in point.rows]
        return table.to_frame(found)

    def save(self, folder: Path) -> tuple[Path, Path]:
        """Writes `sweep.csv` and `sweep.png`; the table last: who finds it may trust that all is there."""
        paths = folder / "sweep.csv", folder / "sweep.png"
        plots.plot_sweep(self.frame, self.over, paths[1])
        table.to_csv(self.frame, paths[0])
        return paths


def strengths(
    lm: SteeredLM,
    variant: Variant,
    values: Sequence[float],
    development: Sequence[TaskExamples],
    test: Test,
    store: AnswerStore | None = None,
    on_progress: OnProgress = ignore,
) -> Sweep:
    """Evaluates a booster at several strengths, all in one pass, and chooses one on development documents.

    Args:
        lm: The model, without a booster.
        variant: The booster to sweep; the strengths multiply its own.
        values: Strengths; 0 is the unchanged model.
        development: Tasks whose development examples choose; those the booster was trained on do not count.
        test: What is reported on.
        store: See `evaluation.evaluate`.
        on_progress: See `evaluation.evaluate`.

    Raises:
        TrainingError: No development documents are left, or the booster's training documents are not known.
        TaskError: See `refuse_overlap`.
    """
    booster = variant.booster
    if booster is None:
        raise TrainingError("there is no booster to sweep")
    examples = unseen_examples([booster], development)
    refuse_overlap(test, examples)
    variants = at_strengths(variant, values)
    norm: Any = booster.provenance.choice_norm or "none"
    return run(lm, variants, "strength", development, examples, test, norm, store, on_progress)


def at_strengths(variant: Variant, values: Sequence[float]) -> list[Variant]:
    """A variant at several multiples of its own strength, named after them."""
    stem = variant.name.removesuffix(f":{variant.strength:g}").replace(".safetensors", "")
    names = {value: f"{stem} at {variant.strength * value:g}" for value in values}
    # Strengths that differ in late digits only look alike.
    return distinct([Variant(names[value], variant.booster, variant.strength * value) for value in values])


def layer_file(layer: int) -> str:
    """The file of the booster that a layer sweep trains at a layer."""
    return f"layer-{layer:02d}.safetensors"


def layers(
    lm: SteeredHFLM,
    tasks: Sequence[TaskExamples],
    settings: Settings,
    candidates: Sequence[int],
    folder: Path,
    test: Test,
    store: AnswerStore | None = None,
    on_training: Callable[[int, int, TrainingProgress], None] = ignore,
    on_progress: OnProgress = ignore,
) -> Sweep:
    """Trains a booster at each of several layers and chooses one on development documents.

    Args:
        lm: The model, without a booster.
        tasks: Training and development examples.
        settings: How to train; its layers are replaced.
        candidates: The layers to try.
        folder: Where the boosters go. Those that are there already and came from the very same training are used.
        test: What is reported on.
        store: See `evaluation.evaluate`.
        on_training: Called with how many layers are trained, of how many, and the progress of the present one.
        on_progress: See `evaluation.evaluate`.

    Raises:
        TrainingError: There are no development examples.
        TaskError: See `refuse_overlap`.
    """
    examples = [example for task in tasks for example in task.development]
    if not examples:
        raise TrainingError("a layer sweep chooses on development documents; set some aside")
    refuse_overlap(test, [*examples, *(example for task in tasks for example in task.train)])
    variants = []
    for done, layer in enumerate(candidates):
        path = folder / layer_file(layer)
        at_layer = replace(settings, layers=layer)
        booster = trained_before(path, training_identity(lm, tasks, at_layer))
        if booster is None:
            booster = training.train_into(path, lm, tasks, at_layer, partial(on_training, done, len(candidates)))
        variants.append(Variant(f"layer {layer}", booster))
    return run(lm, variants, "layers", tasks, examples, test, settings.choice_norm, store, on_progress)


def run(
    lm: SteeredLM,
    variants: Sequence[Variant],
    over: Literal["layers", "strength"],
    development: Sequence[TaskExamples],
    examples: Sequence[Example],
    test: Test,
    choice_norm: ChoiceNorm = "none",
    store: AnswerStore | None = None,
    on_progress: OnProgress = ignore,
) -> Sweep:
    """Scores variants on development examples, chooses the best, and evaluates all of them on test documents.

    Args:
        lm: The model, without a booster.
        variants: What is compared; names must differ.
        over: What they differ in.
        development: The tasks of the examples.
        examples: Development examples that may choose.
        test: What is reported on.
        choice_norm: How choices are ranked.
        store: See `evaluation.evaluate`.
        on_progress: See `evaluation.evaluate`.

    Raises:
        TrainingError: There are no development examples.
        TaskError: A test task has no metric that is one number a document.
    """
    unchanged, *scores = ranking_scores(lm, [BASELINE, *variants], development, examples, choice_norm)
    best = min(range(len(variants)), key=lambda index: scores[index].rank)
    results = evaluation.evaluate(
        lm,
        [BASELINE, *variants],
        test.tasks,
        test.prompt_format,
        source=test.source,
        limit=test.limit,
        docs=test.docs,
        store=store,
        on_progress=on_progress,
    )
    found = leaderboard.corrected(rows([each.run for each in results]))
    if silent := sorted(set(results[0].results["samples"]) - {row["task"] for row in found}):
        raise TaskError(f"{', '.join(silent)}: a sweep needs a metric with one number per document")
    points = []
    for index, (variant, score) in enumerate(zip(variants, scores, strict=True)):
        mine = [row for row in found if row["booster"] == variant.name]
        points.append(Point(variant, score, index == best, mine))
    return Sweep(over, points, unchanged)


def refuse_overlap(test: Test, examples: Sequence[Example]) -> None:
    """Refuses to report on documents that something was learned from or chosen by.

    Raises:
        TaskError: A test task holds some of them, or cannot be loaded.
    """
    known = {example.document for example in examples}
    for name, task in (test.source or Tasks()).leaves(test.tasks).items():
        asked = [hashes for _, hashes in evaluated_documents(task, test.docs or ALL, test.limit)]
        if shared := sum(not known.isdisjoint(hashes) for hashes in asked):
            raise TaskError(
                f"{shared} of {len(asked)} test documents of {name} are among the training or development documents: "
                "choose others with a slice of test documents"
            )


def best_layer(
    lm: SteeredHFLM,
    tasks: Sequence[TaskExamples],
    settings: Settings,
    candidates: Sequence[int],
    *,
    licence: str | None = None,
    cache_limit: int = training.CACHE_LIMIT,
    memory: int | None = None,
    resume: Path | None = None,
    on_training: Callable[[int, int, TrainingProgress], None] = ignore,
) -> tuple[TrainingResult, dict[int, Score]]:
    """Trains at each of several layers and keeps the booster that does best on development documents.

    Args:
        lm: See `training.train`.
        tasks: See `training.train`.
        settings: How to train; its layers are replaced.
        candidates: The layers to try.
        licence: See `training.train`.
        cache_limit: See `training.train`.
        memory: See `training.train`.
        resume: For the states of the trainings, see `training.train` and `state_of`.
        on_training: Called with how many layers are trained, of how many, and the progress of the present one.

    Returns:
        The best training, and the development score of each layer; the booster's provenance holds them too.

    Raises:
        TrainingError: There are no development examples.
    """
    examples = [example for task in tasks for example in task.development]
    if not examples:
        raise TrainingError("layers are chosen on development documents; set some aside")
    tried: dict[int, TrainingResult] = {}
    for done, layer in enumerate(candidates):
        tried[layer] = training.train(
            lm,
            tasks,
            replace(settings, layers=layer),
            licence=licence,
            cache_limit=cache_limit,
            memory=memory,
            resume=state_of(resume, layer),
            on_progress=partial(on_training, done, len(candidates)),
        )
    variants = [Variant(f"layer {layer}", result.booster) for layer, result in tried.items()]
    scores = dict(zip(tried, ranking_scores(lm, variants, tasks, examples, settings.choice_norm), strict=True))
    best = tried[min(scores, key=lambda layer: scores[layer].rank)]
    sweep = {str(layer): score for layer, score in scores.items()}
    return replace(best, booster=best.booster.with_provenance(layer_sweep=sweep)), scores


def state_of(resume: Path | None, layer: int) -> Path | None:
    """The file for the state of one layer's training: its number stands after the name."""
    return resume and resume.with_name(f"{resume.name}-{layer}")


def automatic_layers(count: int) -> list[int]:
    """The layers that are tried where nothing is said: six, evenly spread between bottom and top of the model."""
    return sorted({round(count * sixth / 7) for sixth in range(1, 7)} - {count})


def parse_strengths(text: str) -> list[float]:
    """The strengths of a list such as `0.5,1,1.5`.

    Raises:
        ParseError: Not finite numbers.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise ParseError(f"strengths {text!r}: expected finite numbers such as 0.5,1,1.5")
    return list(dict.fromkeys(values))
