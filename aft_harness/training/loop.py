"""One pass over the training examples, with a step of the optimiser after each batch.

Knows the objective and an optimiser. Knows nothing of where examples come from or what becomes of a booster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.optim.lr_scheduler import LRScheduler

from aft_harness.errors import TrainingError
from aft_harness.progress import OnTraining, TrainingProgress
from aft_harness.training.keeping import Keeping
from aft_harness.training.prepared_objective import PreparedObjective
from aft_harness.training.recipe import Settings


@dataclass(frozen=True)
class EpochLosses:
    """The training losses of one epoch, as they ran.

    Attributes:
        mean: Weighted mean over the examples.
        steps: Of each optimiser step's batch.
        divergences: From the unsteered model on the texts of each step, in nats a token; empty if none are kept.
    """

    mean: float
    steps: tuple[float, ...]
    divergences: tuple[float, ...] = ()


def run_epoch(
    objective: PreparedObjective,
    examples: Sequence[int],
    settings: Settings,
    schedule: LRScheduler,
    epoch: int,
    gradients_are_finite: Callable[[], bool],
    on_progress: OnTraining,
    keeping: Keeping | None = None,
) -> EpochLosses:
    """Learns from each example once, in a seeded order.

    Args:
        objective: What is minimised.
        examples: Indices of what to learn from.
        settings: Batch size and seed are used.
        schedule: Of the optimiser that steps.
        epoch: Which pass this is, from 1.
        gradients_are_finite: Asked before each step.
        on_progress: Called after each step.
        keeping: What the model is held to itself on, by the weight in the settings.

    Raises:
        TrainingError: The loss or a gradient is not finite.
    """
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch))
    steps = math.ceil(len(examples) / settings.batch_size)
    total = weight_seen = 0.0
    step_losses, divergences = [], []
    for step in range(steps):
        places = order[step * settings.batch_size : (step + 1) * settings.batch_size].tolist()
        batch = [examples[place] for place in places]
        weight = sum(objective.examples[index].weight for index in batch)
        schedule.optimizer.zero_grad()
        batch_loss = 0.0
        for chunk in objective.prepared.chunks(batch):
            for part in objective.losses(chunk):
                losses = torch.stack(list(part.values()))
                weights = torch.tensor([objective.examples[index].weight for index in part], device=losses.device)
                loss = (losses * weights).sum() / weight
                loss.backward()
                batch_loss += loss.item()
        if keeping is not None:
            divergence = keeping.divergence(keeping.texts_of_step((epoch - 1) * steps + step, settings.seed))
            (settings.keep * divergence).backward()
            divergences.append(divergence.item())
        if not math.isfinite(batch_loss) or not gradients_are_finite():
            raise TrainingError(
                f"the loss became {batch_loss} in epoch {epoch}; lower the learning rate ({settings.lr:g})"
            )
        schedule.optimizer.step()
        schedule.step()
        step_losses.append(batch_loss)
        total += batch_loss * weight
        weight_seen += weight
        done = (epoch - 1) * steps + step + 1
        on_progress(TrainingProgress(done, settings.epochs * steps, epoch, total / weight_seen))
    return EpochLosses(total / weight_seen, tuple(step_losses), tuple(divergences))
