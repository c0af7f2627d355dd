"""The objective over the examples of a training: laid out once, and scored under whatever steering is in force.

Joins examples, their objectives and their rows. Knows nothing of optimisers, boosters or provenance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from aft_harness.boosters.provenance import Score
from aft_harness.engine.scoring import Engine
from aft_harness.harness.examples import Example, TaskExamples
from aft_harness.training.objective import TRAINING_OBJECTIVE, Outcome, mean_score, training_objectives
from aft_harness.training.prepared import PreparedExamples
from aft_harness.training.recipe import Settings

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

    def __init__(self, engine: Engine, tasks: Sequence[TaskExamples], settings: Settings) -> None:
        """Lays the examples out, and measures the temperature of each task where none is set.

        Args:
            engine: Runs the model, which is unsteered.
            tasks: All examples that will be asked for.
            settings: Objective, choice norm and temperature are used.

        Raises:
            TrainingError: An objective on choices is asked for, and no task has any.
        """
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
        if settings.temperature is None:
            for task in tasks:
                if self.objectives[task.task].name != "answer":
                    margin = self._typical_margin(task.task, firsts[task.task])
                    self.objectives[task.task] = replace(self.objectives[task.task], temperature=margin)

    def _typical_margin(self, task: str, indices: Sequence[int]) -> float:
        with torch.no_grad():
            parts = [part for chunk in self.prepared.chunks(indices) for part in self.prepared.loglikelihoods(chunk)]
        return self.objectives[task].typical_margin([self.examples[index] for index in indices], parts)

    @property
    def temperatures(self) -> dict[str, float]:
        """Of the softmax over choices, by task."""
        return {task: objective.temperature for task, objective in self.objectives.items()}

    def outcomes(self, indices: Sequence[int]) -> list[Outcome]:
        """The outcome of each example; differentiable."""
        examples = [self.examples[index] for index in indices]
        parts = self.prepared.loglikelihoods(indices)
        pairs = zip(examples, parts, strict=True)
        return [self.objectives[example.task].outcome(example, part) for example, part in pairs]

    def score(self, indices: Sequence[int]) -> Score:
        """Mean loss and accuracy, without gradient."""
        with torch.no_grad():
            found = [outcome for chunk in self.prepared.chunks(indices) for outcome in self.outcomes(chunk)]
        return mean_score(found, [self.examples[index].weight for index in indices], TRAINING_OBJECTIVE)
