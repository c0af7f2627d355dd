"""The objective over the examples of a training: laid out once, and scored under whatever steering is in force.

Joins examples, their objectives and their rows. Knows nothing of optimisers, boosters or provenance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from aft_harness.boosters.provenance import Score
from aft_harness.engine.footprint import footprint
from aft_harness.engine.processes import ALONE, Processes
from aft_harness.engine.scoring import Engine
from aft_harness.harness.examples import Example, TaskExamples
from aft_harness.training.objective import TRAINING_OBJECTIVE, Outcome, mean_score, training_objectives
from aft_harness.training.prepared import PreparedExamples
from aft_harness.training.recipe import Settings

AtStrength = Callable[[float], AbstractContextManager[None]]
"""In the block that it gives, what is being trained acts at another strength."""

MEASURED = 64
"""Examples of a task that its temperature is measured on."""


class PreparedObjective:
    """What a training minimises, on its own examples.

    Attributes:
        examples: Of all tasks; everything else here refers to them by index.
        train: Indices of the training examples.
        development: Indices of the development examples.
        prepared: Their rows.
        objectives: By task, with the temperature that is in force.
    """

    def __init__(
        self,
        engine: Engine,
        tasks: Sequence[TaskExamples],
        settings: Settings,
        *,
        lowest: int = 0,
        limit: float = math.inf,
    ) -> None:
        """Lays the examples out, and measures the temperature of each task where none is set.

        Args:
            engine: Runs the model, which is unsteered.
            tasks: All examples that will be asked for.
            settings: Objective, choice norm and temperature are used.
            lowest: The lowest trained layer.
            limit: Bytes that a pass may keep, see `PreparedExamples.bound`.

        Raises:
            TrainingError: An objective is asked for that compares texts, and no task has any.
        """
        self._at_strength: AtStrength = lambda strength: nullcontext()
        self.objectives = training_objectives(tasks, settings)
        self.examples: list[Example] = []
        self.train: list[int] = []
        self.development: list[int] = []
        firsts: dict[str, list[int]] = {}
        for task in tasks:
            for indices, examples in ((self.development, task.development), (self.train, task.train)):
                start = len(self.examples)
                self.examples += examples
                indices += range(start, len(self.examples))
            count = len(task.train) or len(task.development)
            firsts[task.task] = list(range(len(self.examples) - count, len(self.examples)))[:MEASURED]
        wanted = [self.objectives[example.task].requests(example) for example in self.examples]
        self.prepared = PreparedExamples(engine, wanted)
        if math.isfinite(limit):
            self.prepared.bound(footprint(engine, lowest), limit)
        if settings.temperature is None:
            for task in tasks:
                if self.objectives[task.task].name in ("choice", "both"):
                    margin = self._typical_margin(task.task, firsts[task.task])
                    self.objectives[task.task] = replace(self.objectives[task.task], temperature=margin)

        self._references: dict[int, Tensor] = {}
        compared = [index for index in range(len(self.examples)) if self._is_bidirectional(index)]
        with torch.no_grad():
            for chunk in self.prepared.chunks(compared):
                self._references.update(zip(chunk, self.prepared.loglikelihoods(chunk), strict=True))

    def _is_bidirectional(self, index: int) -> bool:
        return self.objectives[self.examples[index].task].name == "preference"

    @contextmanager
    def steered(self, at_strength: AtStrength) -> Iterator[None]:
        """In this block the model is steered by what is being trained.

        Args:
            at_strength: How an objective that needs other strengths sets them.
        """
        before, self._at_strength = self._at_strength, at_strength
        try:
            yield
        finally:
            self._at_strength = before

    def _typical_margin(self, task: str, indices: Sequence[int]) -> float:
        with torch.no_grad():
            parts = [part for chunk in self.prepared.chunks(indices) for part in self.prepared.loglikelihoods(chunk)]
        return self.objectives[task].typical_margin([self.examples[index] for index in indices], parts)

    @property
    def temperatures(self) -> dict[str, float]:
        """Of the softmax over choices, by task."""
        return {task: objective.temperature for task, objective in self.objectives.items()}

    def outcomes(self, indices: Sequence[int]) -> list[Outcome]:
        """The outcome of each example; differentiable. Of a preference loss, the part of it at strength 1."""
        found = []
        for index, part in zip(indices, self.prepared.loglikelihoods(indices), strict=True):
            example = self.examples[index]
            found.append(self.objectives[example.task].outcome(example, part, self._references.get(index)))
        return found

    def losses(self, indices: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        """Losses by example, in parts whose sum they are: each has a graph of its own, and one is held at a time."""
        yield {index: outcome.loss for index, outcome in zip(indices, self.outcomes(indices), strict=True)}
        if both_ways := [index for index in indices if self._is_bidirectional(index)]:
            yield self._opposed(both_ways)

    def _opposed(self, indices: Sequence[int]) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}
        if not indices:
            return found
        with self._at_strength(-1.0):
            parts = self.prepared.loglikelihoods(indices)
        for index, part in zip(indices, parts, strict=True):
            example = self.examples[index]
            found[index] = self.objectives[example.task].opposed(example, part, self._references[index])
        return found

    def score(self, indices: Sequence[int], processes: Processes = ALONE) -> Score:
        """Mean loss and accuracy, without gradient; several processes share the examples."""
        found: list[Outcome] = []
        with torch.no_grad():
            for chunk in self.prepared.chunks(processes.of(indices)):
                opposed = self._opposed([index for index in chunk if self._is_bidirectional(index)])
                for index, outcome in zip(chunk, self.outcomes(chunk), strict=True):
                    loss = outcome.loss + opposed.get(index, 0.0)
                    found.append(replace(outcome, loss=loss if processes.count == 1 else loss.cpu()))
        return mean_score(
            processes.joined(found) if processes.count > 1 else found,
            [self.examples[index].weight for index in indices],
            TRAINING_OBJECTIVE,
        )
