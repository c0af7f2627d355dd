"""One pass over the training examples, with a step of the optimiser after each batch.

Knows the objective and an optimiser. Knows nothing of where examples come from or what becomes of a booster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch.optim.lr_scheduler import LRScheduler

from aft_harness.engine.processes import ALONE, Processes
from aft_harness.errors import TrainingError
from aft_harness.progress import OnTraining, TrainingProgress
from aft_harness.training.keeping import Keeping
from aft_harness.training.prepared_objective import PreparedObjective
from aft_harness.training.recipe import Settings


@dataclass
class EpochLosses:
    """The training losses of one epoch, as they run; all of it is plain JSON.

    Attributes:
        steps: Of each optimiser step's batch.
        weights: Of its examples together.
        divergences: From the unsteered model on the texts of each step, in nats a token; empty if none are kept.
    """

    steps: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)

    @property
    def total(self) -> float:
        """Weighted sum over the examples."""
        return sum(loss * weight for loss, weight in zip(self.steps, self.weights, strict=True))

    @property
    def mean(self) -> float:
        """Weighted mean over the examples."""
        return self.total / sum(self.weights)


def run_epoch(
    objective: PreparedObjective,
    examples: Sequence[int],
    settings: Settings,
    schedule: LRScheduler,
    epoch: int,
    found: EpochLosses,
    gradients_are_finite: Callable[[], bool],
    on_progress: OnTraining,
    keeping: Keeping | None = None,
    processes: Processes = ALONE,
) -> None:
    """Learns from each example once, in a seeded order.

    Args:
        objective: What is minimised.
        examples: Indices of what to learn from.
        settings: Batch size and seed are used.
        schedule: Of the optimiser that steps.
        epoch: Which pass this is, from 1.
        found: Takes the losses of each step; the steps that it has already are not taken again.
        gradients_are_finite: Asked before each step.
        on_progress: Called after each step.
        keeping: What the model is held to itself on, by the weight in the settings.
        processes: Among which the examples of each step are shared; gradients and losses are their sums.

    Raises:
        TrainingError: The loss or a gradient is not finite.
    """
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch))
    steps = math.ceil(len(examples) / settings.batch_size)
    total, weight_seen = found.total, sum(found.weights)
    for step in range(len(found.steps), steps):
        places = order[step * settings.batch_size : (step + 1) * settings.batch_size].tolist()
        batch = [examples[place] for place in places]
        weight = sum(objective.examples[index].weight for index in batch)
        schedule.optimizer.zero_grad()
        batch_loss = 0.0
        for chunk in objective.prepared.chunks(processes.of(batch)):
            for part in objective.losses(chunk):
                losses = torch.stack(list(part.values()))
                weights = torch.tensor([objective.examples[index].weight for index in part], device=losses.device)
                loss = (losses * weights).sum() / weight
                loss.backward()
                batch_loss += loss.item()
        divergence = 0.0
        if keeping is not None:
            texts = keeping.texts_of_step((epoch - 1) * steps + step, settings.seed)
            turn = (processes.rank + step) % processes.count  # of few texts each process gets one now and then
            if mine := texts[turn :: processes.count]:
                kept = keeping.divergence(mine) * (len(mine) / len(texts))
                (settings.keep * kept).backward()
                divergence = kept.item()
        batch_loss, divergence = _shared(processes, schedule.optimizer, batch_loss, divergence)
        if keeping is not None:
            found.divergences.append(divergence)
        if not math.isfinite(batch_loss) or not gradients_are_finite():
            raise TrainingError(
                f"the loss became {batch_loss} in epoch {epoch}; lower the learning rate ({settings.lr:g})"
            )
        schedule.optimizer.step()
        schedule.step()
        found.steps.append(batch_loss)
        found.weights.append(weight)
        total += batch_loss * weight
        weight_seen += weight
        done = (epoch - 1) * steps + step + 1
        on_progress(TrainingProgress(done, settings.epochs * steps, epoch, total / weight_seen))


def _shared(processes: Processes, optimiser: torch.optim.Optimizer, *losses: float) -> tuple[float, ...]:
    """Sums gradients over all processes, and returns the sums of losses."""
    if processes.count == 1:
        return losses
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    for parameter in parameters:
        if parameter.grad is None:  # there was nothing here for this process
            parameter.grad = torch.zeros_like(parameter)
    processes.add([parameter.grad for parameter in parameters])
    return tuple(sum(each) for each in zip(*processes.gathered(losses), strict=True))
