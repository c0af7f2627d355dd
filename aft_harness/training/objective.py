"""What training minimises, and what choices of layer, strength or rate are made by: the loss of one example.

Knows examples and their loglikelihoods. Knows nothing of models, rows or optimisers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from aft_harness.boosters.provenance import Score
from aft_harness.engine.scoring import Request
from aft_harness.errors import TrainingError
from aft_harness.harness.examples import Example, TaskExamples
from aft_harness.training.recipe import ChoiceNorm, Objective, Settings, objective_of

TRAINING_OBJECTIVE = "training objective"
RANKING_LOSS = "ranking loss"
"""The measures of a `Score`: see there."""

PREFERENCE_TEMPERATURE = 10.0
"""1 / beta of BiPO, where nothing is said."""

SMALLEST_TEMPERATURE = 1e-3
"""Nats: choices that are all alike have no margin to divide by."""


def choice_lengths(example: Example, norm: ChoiceNorm) -> list[int]:
    """What the loglikelihood of each choice is divided by before choices are ranked; at least 1.

    Args:
        example: With choices.
        norm: `characters` is what lm-eval's `acc_norm` ranks by, `bytes` its `acc_bytes`.
    """
    lengths = {
        "none": [1 for _ in example.choices],
        "characters": [len(choice) for choice in example.choices],
        "bytes": [len(choice.encode()) for choice in example.choices],
        "tokens": [len(request.continuation) for request in example.requests],
    }
    return [max(1, length) for length in lengths[norm]]


@dataclass(frozen=True)
class Outcome:
    """The loss of one example.

    Attributes:
        loss: Differentiable.
        right: Whether the likeliest choice is a right one; None where choices were not ranked.
    """

    loss: Tensor
    right: bool | None


@dataclass(frozen=True)
class TaskObjective:
    """The loss of one task's examples.

    Attributes:
        name: `answer`, `choice`, `both` or `preference`.
        choice_norm: What loglikelihoods are divided by before they are compared.
        temperature: And after that.
    """

    name: Objective
    choice_norm: ChoiceNorm = "none"
    temperature: float = 1.0

    def requests(self, example: Example) -> Sequence[Request]:
        """Those requests of an example whose loglikelihoods the loss needs."""
        return (example.requests[example.gold[0]],) if self.name == "answer" else example.requests

    def outcome(self, example: Example, loglikelihoods: Tensor, reference: Tensor | None = None) -> Outcome:
        """The loss of an example; of `preference`, the part of it at strength 1, see `opposed`.

        Args:
            example: Of this task.
            loglikelihoods: Of its `requests`, [requests].
            reference: Those under the unchanged model, which `preference` needs.
        """
        gold = example.gold[0]
        answer = -loglikelihoods[gold if len(loglikelihoods) > 1 else 0] / len(example.requests[gold].continuation)
        if self.name == "answer":
            return Outcome(answer, None)
        ranked = self.ranked(example, loglikelihoods / self.temperature)
        right = int(ranked.argmax()) in example.gold
        if self.name == "preference":
            assert reference is not None
            return Outcome(self._preference(example, loglikelihoods, reference, 1.0), right)
        loss = ranked.logsumexp(0) - ranked[list(example.gold)].logsumexp(0)
        return Outcome(loss + answer if self.name == "both" else loss, right)

    def opposed(self, example: Example, loglikelihoods: Tensor, reference: Tensor) -> Tensor:
        """The part of the preference loss at strength -1, where the rejected text gains on the chosen one.

        Args:
            example: Of this task.
            loglikelihoods: Of its `requests` with every delta reversed, [requests].
            reference: Those under the unchanged model.
        """
        return self._preference(example, loglikelihoods, reference, -1.0)

    def _preference(self, example: Example, loglikelihoods: Tensor, reference: Tensor, direction: float) -> Tensor:
        """The loss of BiPO in one direction, halved.

        Y. Cao et al., Personalized Steering of Large Language Models, 2024, arXiv 2406.00045, equation 3: for a
        direction d drawn from -1 and 1, -log sigmoid(d * beta * (margin under d * v - margin of the unchanged model)).
        The margin is the loglikelihood of the chosen text minus that of the rejected one. Here both directions are
        computed and their mean is the loss.
        """
        gained = self.ranked(example, (loglikelihoods - reference.to(loglikelihoods)) / self.temperature)
        gold = example.gold[0]
        return -logsigmoid(direction * (gained[gold] - gained[1 - gold])) / 2

    def ranked(self, example: Example, loglikelihoods: Tensor) -> Tensor:
        """What choices are ranked by, [choices], differentiable: their loglikelihoods over their lengths."""
        return loglikelihoods / torch.tensor(choice_lengths(example, self.choice_norm)).to(loglikelihoods)

    def typical_margin(self, examples: Sequence[Example], loglikelihoods: Sequence[Tensor]) -> float:
        """Median distance, in nats, between the best right and the best wrong choice.

        As a temperature it makes the objective independent of how long choices are. Sums over many tokens lie far
        apart: at temperature 1 the softmax over them is all but certain, and the loss is mostly that of the few
        questions which are hopelessly wrong.

        Args:
            examples: Of this task, with choices.
            loglikelihoods: Of the requests of each, under the unchanged model.
        """
        margins = []
        for example, part in zip(examples, loglikelihoods, strict=True):
            ranked = self.ranked(example, part)
            right = torch.zeros(len(part), dtype=torch.bool, device=part.device)
            right[list(example.gold)] = True
            if not right.all():
                margins.append(abs(float(ranked[right].max() - ranked[~right].max())))
        return max(median(margins), SMALLEST_TEMPERATURE) if margins else 1.0


def training_objectives(tasks: Sequence[TaskExamples], settings: Settings) -> dict[str, TaskObjective]:
    """What is minimised, by task; a temperature that is to be measured is 1 for now.

    Raises:
        TrainingError: An objective is asked for that compares texts, and no task has what it compares.
    """
    needed = _COMPARED.get(settings.objective or "answer", ())
    if needed and not any(task.kind in needed for task in tasks):
        names = " and ".join(task.task for task in tasks)
        what = "pairs with a rejected text" if settings.objective == "preference" else "choices"
        way_out = "both" if any(task.kind == "choice" for task in tasks) else "answer"
        raise TrainingError(f"objective {settings.objective}: there are no {what} in {names}; use {way_out}")
    found = {}
    for task in tasks:
        name = objective_of(task.kind, settings.objective)
        usual = PREFERENCE_TEMPERATURE if name == "preference" else 1.0
        found[task.task] = TaskObjective(name, settings.choice_norm, settings.temperature or usual)
    return found


_COMPARED = {"choice": ("choice", "pair"), "both": ("choice", "pair"), "preference": ("pair",)}
"""The kinds of examples that have what an objective compares."""


def ranking_objectives(tasks: Sequence[TaskExamples], choice_norm: ChoiceNorm = "none") -> dict[str, TaskObjective]:
    """What variants are compared by, whatever they were trained by: the ranking loss, see `Score`."""
    return {task.task: TaskObjective("answer" if task.kind == "text" else "choice", choice_norm) for task in tasks}


def mean_score(outcomes: Sequence[Outcome], weights: Sequence[float], measure: str) -> Score:
    """The score of a set of examples.

    Args:
        outcomes: Of each example; at least one.
        weights: Of each example in the mean loss.
        measure: What the losses are.
    """
    right = [outcome.right for outcome in outcomes if outcome.right is not None]
    total = sum(float(outcome.loss) * weight for outcome, weight in zip(outcomes, weights, strict=True))
    return Score(
        loss=total / sum(weights),
        accuracy=sum(right) / len(right) if right else None,
        n=len(outcomes),
        measure=measure,
    )
