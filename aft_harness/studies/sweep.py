"""Which layer, which strength: studies that choose on development documents and report on test documents.

Knows boosters, training and evaluation. Every variant's test result is reported, and the one that development
documents chose is marked: the best of many test results is not a result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from aft_harness.boosters import documents
from aft_harness.boosters.booster import Booster
from aft_harness.engine.steering import check_layer
from aft_harness.errors import TaskError, TrainingError
from aft_harness.harness import evaluation
from aft_harness.harness.evaluation import Variant
from aft_harness.harness.examples import Example, Prompting, TaskExamples, TaskSelection, evaluated, load_tasks
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.score_store import ScoreStore
from aft_harness.results import plots, report
from aft_harness.results.statistics import Paired
from aft_harness.training import train as training
from aft_harness.training.answers import OnProgress, answers
from aft_harness.training.lesson import Score
from aft_harness.training.recipe import ChoiceNorm, Settings
from aft_harness.training.train import Progress, Trained


@dataclass(frozen=True)
class Point:
    """One variant of a sweep.

    Attributes:
        variant: What was evaluated.
        name: What a table calls the booster.
        development: What the choice was made by.
        chosen: Whether it is the choice.
        tests: Task, metric and paired result on test documents.
    """

    variant: Variant
    name: str
    development: Score
    chosen: bool
    tests: list[tuple[str, str, Paired]]

    def rows(self, model: str) -> list[dict[str, Any]]:
        """The point as rows of a CSV."""
        assert self.variant.booster is not None
        accuracy = "" if self.development.accuracy is None else self.development.accuracy
        columns = {
            "development_n": self.development.n,
            "development_accuracy": accuracy,
            "development_loss": self.development.loss,
            "chosen": int(self.chosen),
        }
        told = (model, self.name, self.variant.booster, self.variant.strength)
        return [report.row(*told, task, metric, paired, columns) for task, metric, paired in self.tests]


@dataclass(frozen=True)
class Test:
    """What a sweep reports on: see `evaluation.evaluate`."""

    tasks: Sequence[str]
    prompting: Prompting
    limit: int | None = None
    docs: str | None = None


def strengths(
    lm: SteeredHFLM,
    booster: Booster,
    values: Sequence[float],
    development: Sequence[TaskExamples],
    test: Test,
    store: ScoreStore | None = None,
    on_progress: OnProgress = lambda done, total: None,
    name: str = "",
) -> list[Point]:
    """Evaluates a booster at several strengths, all in one pass, and chooses one on development documents.

    Args:
        lm: The model, without a booster.
        booster: What to sweep.
        values: Strengths; 0 is the unchanged model.
        development: Tasks whose development examples choose; those the booster was trained on do not count.
        test: What is reported on.
        store: See `evaluation.evaluate`.
        on_progress: See `evaluation.evaluate`.
        name: What a table calls the booster.

    Raises:
        TrainingError: No development documents are left, or the booster's training documents are not known.
        TaskError: See `refuse_overlap`.
    """
    if missing := documents.unlisted(booster.provenance):
        raise TrainingError(
            f"the list of the booster's {missing} training documents is missing (NAME.safetensors.documents.txt), so "
            "that development documents cannot be told from them"
        )
    variants = [Variant(f"strength {value:g}", booster, value) for value in values]
    trained = documents.recorded_hashes(booster.provenance)
    examples = [one for task in development for one in task.development if one.document not in trained]
    refuse_overlap(test, examples)
    scores = measured(lm, variants, examples, booster.provenance.get("choice_norm", "none"))
    return _swept(lm, variants, [name or "booster"] * len(variants), scores, test, store, on_progress)


def layers(
    lm: SteeredHFLM,
    tasks: Sequence[TaskExamples],
    settings: Settings,
    candidates: Sequence[int],
    folder: Path,
    test: Test,
    store: ScoreStore | None = None,
    on_trained: Callable[[int, int, Progress], None] = lambda done, total, progress: None,
    on_progress: OnProgress = lambda done, total: None,
) -> list[Point]:
    """Trains a booster at each of several layers and chooses one on development documents.

    Args:
        lm: The model, without a booster.
        tasks: Training and development examples.
        settings: How to train; its layers are replaced.
        candidates: The layers to try.
        folder: Where the boosters go. Those that are there already and came from the very same training are used.
        test: What is reported on.
        store: See `evaluation.evaluate`.
        on_trained: Told how many layers are trained, of how many, and how the present one is getting on.
        on_progress: See `evaluation.evaluate`.

    Raises:
        TrainingError: There are no development examples.
        TaskError: See `refuse_overlap`.
    """
    examples = [example for task in tasks for example in task.development]
    if not examples:
        raise TrainingError("a layer sweep chooses on development documents: give --dev-docs")
    refuse_overlap(test, [*examples, *(example for task in tasks for example in task.train)])
    variants, names = [], []
    for done, layer in enumerate(candidates):
        path = folder / f"layer-{layer:02d}.safetensors"
        own = replace(settings, layers=(layer,))
        booster = training.trained_before(path, training.training_identity(lm, tasks, own))
        if booster is None:

            def told(progress: Progress, done: int = done) -> None:
                on_trained(done, len(candidates), progress)

            booster = training.train(lm, tasks, own, test.prompting, on_progress=told).booster
            booster.save(path)
        variants.append(Variant(f"layer {layer}", booster))
        names.append(path.name)
    scores = measured(lm, variants, examples, settings.choice_norm)
    return _swept(lm, variants, names, scores, test, store, on_progress)


def refuse_overlap(test: Test, examples: Sequence[Example]) -> None:
    """Refuses to report on documents that something was learned from or chosen by; loads the test tasks.

    Raises:
        TaskError: A test task holds some of them, or cannot be loaded.
    """
    known = {example.document for example in examples}
    for selection, task in load_tasks([TaskSelection(name) for name in test.tasks], test.prompting.include_path):
        asked = [hashes for _, hashes in evaluated(task, test.docs, test.limit)]
        if shared := sum(not known.isdisjoint(hashes) for hashes in asked):
            raise TaskError(
                f"{shared} of {len(asked)} test documents of {selection.name} are among the training or development "
                "documents: report on others with --test-docs A:B"
            )


def measured(
    lm: SteeredHFLM, variants: Sequence[Variant], examples: Sequence[Example], choice_norm: ChoiceNorm = "none"
) -> list[Score]:
    """How each variant does on examples, in one pass: what every choice is made by.

    Raises:
        TrainingError: There are no examples.
    """
    if not examples:
        raise TrainingError("nothing can be chosen without development documents: give --dev-docs")
    steerings = [lm.steering_for(variant.booster, variant.strength) for variant in variants]
    found = []
    for given in answers(lm, examples, steerings, choice_norm):
        right = [answer.right for answer in given if answer.right is not None]
        accuracy = sum(right) / len(right) if right else None
        found.append(Score(sum(answer.loss for answer in given) / len(given), accuracy, len(given)))
    return found


def _swept(
    lm: SteeredHFLM,
    variants: Sequence[Variant],
    names: Sequence[str],
    development: Sequence[Score],
    test: Test,
    store: ScoreStore | None,
    on_progress: OnProgress,
) -> list[Point]:
    best = min(range(len(variants)), key=lambda index: development[index].rank)
    baseline, *steered = evaluation.evaluate(
        lm,
        [Variant("baseline"), *variants],
        test.tasks,
        test.prompting,
        limit=test.limit,
        docs=test.docs,
        store=store,
        on_progress=on_progress,
    )
    tests = [list(evaluation.paired(baseline, results)) for results in steered]
    if silent := sorted(set(baseline.results["samples"]) - {task for task, _, _ in tests[0]}):
        raise TaskError(f"{', '.join(silent)}: no metric is one number a document, which a sweep compares by")
    columns = zip(variants, names, development, tests, strict=True)
    return [
        Point(variant, name, developed, index == best, tested)
        for index, (variant, name, developed, tested) in enumerate(columns)
    ]


def best_layer(
    lm: SteeredHFLM,
    tasks: Sequence[TaskExamples],
    settings: Settings,
    candidates: Sequence[int],
    prompting: Prompting | None = None,
    licence: str | None = None,
    cache_limit: int = training.CACHE_LIMIT,
    on_progress: Callable[[Progress, str], None] = lambda progress, prefix: None,
) -> tuple[Trained, dict[int, Score]]:
    """Trains at each of several layers and keeps the booster that does best on development documents.

    Args:
        lm: See `training.train`.
        tasks: See `training.train`.
        settings: How to train; its layers are replaced.
        candidates: The layers to try.
        prompting: See `training.train`.
        licence: See `training.train`.
        cache_limit: See `training.train`.
        on_progress: Told how the present training is getting on, and which it is.

    Returns:
        The best training, and the development score of each layer; the booster's provenance holds them too.

    Raises:
        TrainingError: There are no development examples.
    """
    examples = [example for task in tasks for example in task.development]
    if not examples:
        raise TrainingError("--layer auto chooses on development documents: give --dev-docs")
    tried: dict[int, Trained] = {}
    for layer in candidates:
        told = f"layer {layer} of {', '.join(map(str, candidates))}: "
        own = replace(settings, layers=(layer,))
        tried[layer] = training.train(
            lm, tasks, own, prompting, licence, cache_limit, partial(lambda prefix, now: on_progress(now, prefix), told)
        )
    variants = [Variant(f"layer {layer}", trained.booster) for layer, trained in tried.items()]
    scores = dict(zip(tried, measured(lm, variants, examples, settings.choice_norm), strict=True))
    best = tried[min(scores, key=lambda layer: scores[layer].rank)]
    noted = {str(layer): asdict(score) for layer, score in scores.items()}
    booster = Booster(best.booster.injections, {**best.booster.provenance, "layer_sweep": noted})
    return replace(best, booster=booster), scores


def parse_layers(text: str, count: int) -> list[int]:
    """The layers that `all`, `10-25` or `4,8,10-12` means for a model of `count` layers.

    Raises:
        TrainingError: Not of that form.
        ModelError: A layer out of range.
    """
    if text == "all":
        return list(range(count))
    found: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise TrainingError(f"--layers {text}: expected all, or layers and ranges such as 4,8,10-12")
        found.update(dict.fromkeys(range(int(first), int(last or first) + 1)))
    return [check_layer(layer, count) for layer in found]


def parse_strengths(text: str) -> list[float]:
    """The strengths of a list such as `0.5,1,1.5`.

    Raises:
        TrainingError: Not numbers.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise TrainingError(f"--strengths {text}: expected numbers such as 0.5,1,1.5") from None
    if not all(abs(value) < float("inf") for value in values):
        raise TrainingError(f"--strengths {text}: expected finite numbers")
    return list(dict.fromkeys(values))


def automatic_layers(count: int) -> list[int]:
    """The layers that `--layer auto` tries: six, evenly spread between the bottom and the top of the model."""
    return sorted({round(count * sixth / 7) for sixth in range(1, 7)} - {count})


def written(points: Sequence[Point], model: str, over: str, folder: Path) -> Mapping[str, Path]:
    """Writes `sweep.csv` and `sweep.png` into a folder and returns their paths."""
    rows = [row for point in points for row in point.rows(model)]
    paths = {"table": folder / "sweep.csv", "plot": folder / "sweep.png"}
    plots.plot_sweep(rows, over, paths["plot"])
    report.write_csv(rows, paths["table"])  # last: who finds the table may trust that all is there
    return paths
