"""What a training will take, before its model is loaded: memory and time.

The same training runs for a moment on models of two and of four layers, as wide as the real one, with random weights.
What it takes is linear in the number of layers and in the tokens that are learned from. Knows trainings, examples and
configurations; knows nothing of the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from aft_harness.engine import trie
from aft_harness.engine.footprint import Footprint, footprint
from aft_harness.errors import TrainingError
from aft_harness.harness.blueprint import DEEP, SHALLOW, Blueprint, Forecast
from aft_harness.harness.examples import Example, TaskExamples
from aft_harness.harness.model import SteeredHFLM
from aft_harness.training import result, train
from aft_harness.training.groundwork import frozen, kept_texts
from aft_harness.training.memory import Memory, in_use, used
from aft_harness.training.prepared_objective import PreparedObjective
from aft_harness.training.recipe import Settings

FEW, MORE = 8, 24
"""Documents of each task that a trial learns from."""

_TYPICAL = 1.2
"""How much more of an allocator's memory is in use at the peak than in the worst case, which bounds are made for."""


Draw = Callable[[SteeredHFLM], Sequence[TaskExamples]]
"""Draws the examples of a training for a model."""


def forecast(
    blueprint: Blueprint,
    draw: Draw,
    settings: Settings,
    *,
    cache_limit: int = train.CACHE_LIMIT,
    memory: int | None = None,
    keep_texts: Sequence[str] | None = None,
    disposable: bool = False,
) -> Forecast:
    """Estimates what `train.train` will take.

    Args:
        blueprint: Of the model.
        draw: Draws the examples.
        settings: How to train.
        cache_limit: See `train.train`.
        memory: See `train.train`.
        keep_texts: See `train.train`.
        disposable: See `train.train`.

    Raises:
        TrainingError: The model alone takes all the memory, or the objective learns from the model's own texts.
    """
    if settings.on_own_texts:
        raise TrainingError(f"what objective {settings.objective} takes cannot be estimated: it depends on the texts")
    chosen = settings.layer_indices(blueprint.layers)
    lowest, above = chosen[0], blueprint.layers - chosen[0] - 1
    with blueprint.built(SHALLOW) as lm:
        tasks = tuple(draw(lm))
        loaded = used(lm.device) - blueprint.weights_of(SHALLOW) + blueprint.weights
        bounds = Memory.of(lm.device, memory, cache_limit, loaded)
        _tried(lm, tasks, settings, FEW // 2, keep_texts)  # the first passes of a process are slower
        shallow = _tried(lm, tasks, settings, FEW, keep_texts)
        # What a process has taken that has trained: code, tables, and blocks that its allocator does not give back.
        program = used(lm.device) - blueprint.weights_of(SHALLOW)
        freed = blueprint.weights - blueprint.weights_of(above) if disposable else 0
        first = _footprint(lm)
    with blueprint.built(DEEP) as lm:
        deep, more = (_tried(lm, tasks, settings, count, keep_texts) for count in (FEW, MORE))
        objective = PreparedObjective(lm.engine, tasks, settings)
        texts, device = kept_texts(lm, settings, keep_texts), lm.device
        predicted = sum(len(text.continuation) for text in texts)
        states = objective.prepared.columns * blueprint.hidden * blueprint.itemsize
        predictions = predicted * blueprint.vocabulary * 2  # in half precision, see `Keeping`
        cached = min(states, bounds.cache), min(predictions, max(bounds.cache - states, 0))
        bounds = bounds.left(device, program + blueprint.weights - freed + sum(cached))
        objective.prepared.bound(_between(first, _footprint(lm), above + 1), bounds.passes)
        largest = _largest_pass(objective, settings)
    return Forecast(
        memory={
            "program": program,
            "weights": blueprint.weights,
            "hidden states": cached[0],
            "predictions": cached[1],
            "passes": max(int(largest / (_TYPICAL * in_use(device))) - freed, 0),  # in the place of discarded weights
        },
        spilled=max(states + predictions - bounds.cache, 0),
        seconds=_seconds(shallow, deep, more, _Work.of(tasks, settings), blueprint.layers, lowest),
    )


@dataclass(frozen=True)
class _Work:
    """What a training runs, in tokens.

    Attributes:
        cached: Of which hidden states are cached.
        learned: In all epochs.
        scored: Before, between and after epochs.
    """

    cached: int
    learned: int
    scored: int

    @classmethod
    def of(cls, tasks: Sequence[TaskExamples], settings: Settings) -> _Work:
        learned = [example for task in tasks for example in task.train]
        development = [example for task in tasks for example in task.development]
        scorings = settings.epochs + 1 if development else 2
        train_tokens = distinct_tokens(learned)
        return cls(
            train_tokens + distinct_tokens(development),
            settings.epochs * train_tokens,
            scorings * distinct_tokens(development or learned[: train.WATCHED]),
        )


@dataclass(frozen=True)
class _Trial:
    """A training that ran for a moment: what it ran, and its seconds by stage."""

    work: _Work
    seconds: Mapping[str, float]


def _tried(
    lm: SteeredHFLM,
    tasks: Sequence[TaskExamples],
    settings: Settings,
    documents: int,
    keep_texts: Sequence[str] | None,
) -> _Trial:
    few = [replace(task, train=task.train[:documents], development=task.development[:documents]) for task in tasks]
    once = replace(settings, layers="all", epochs=1)
    silent = result.logger.disabled
    result.logger.disabled = True  # random weights learn nothing, which is no news here
    try:
        stages = train.train(lm, few, once, keep_texts=keep_texts).stages
    finally:
        result.logger.disabled = silent
    return _Trial(_Work.of(few, once), stages)


def _seconds(shallow: _Trial, deep: _Trial, more: _Trial, work: _Work, layers: int, lowest: int) -> dict[str, float]:
    """Seconds by stage, of a whole model.

    Caching takes something for the texts that are kept, which run through all layers, and something for each token and
    each layer up to the lowest trained one. Every other pass starts above that layer.
    """
    further = DEEP - SHALLOW
    caching = [trial.seconds["caching"] for trial in (shallow, deep, more)]
    a_token = max(caching[2] - caching[1], 0.0) / (more.work.cached - deep.work.cached or 1)
    a_layer = max(caching[1] - caching[0], 0.0) / further
    rest = max(caching[0] - a_layer * SHALLOW - a_token * shallow.work.cached, 0.0)
    found = {"caching": rest + a_layer * layers + a_token * work.cached * (lowest + 1)}
    for stage, part in (("training", "learned"), ("scoring", "scored")):
        none = shallow.seconds[stage] / getattr(shallow.work, part)
        some = more.seconds[stage] / getattr(more.work, part)
        layer = max(some - none, 0.0) / further
        found[stage] = getattr(work, part) * (none + layer * (layers - lowest - SHALLOW))
    return found


def _footprint(lm: SteeredHFLM) -> Footprint:
    """What a pass through all layers keeps."""
    with frozen(lm.model), lm.engine.differentiated():
        return footprint(lm.engine, 0)


def _between(first: Footprint, second: Footprint, layers: int) -> Footprint:
    """What a pass through some layers keeps."""

    def at(name: str) -> float:
        slope = (getattr(second, name) - getattr(first, name)) / (DEEP - SHALLOW)
        return max(getattr(first, name) + slope * (layers - SHALLOW), 0.0)

    return Footprint(at("column"), at("pair"), at("prediction"), max(layers - 1, 1))


def _largest_pass(objective: PreparedObjective, settings: Settings) -> int:
    """Bytes that the largest pass of an epoch keeps."""
    starts = range(0, len(objective.train), settings.batch_size)
    batches = (objective.train[start : start + settings.batch_size] for start in starts)
    return int(max(objective.prepared.kept(chunk) for batch in batches for chunk in objective.prepared.chunks(batch)))


def distinct_tokens(examples: Sequence[Example]) -> int:
    """Distinct tokens that examples lay out."""
    return trie.distinct_tokens([request.inputs for example in examples for request in example.requests])
