"""What long work reports while it runs. Knows numbers; how they are shown is the caller's business."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

OnProgress = Callable[[int, int], None]
"""Called with how much is done, and of how much."""


@dataclass(frozen=True)
class TrainingProgress:
    """The state of a training after an optimiser step, or while hidden states are cached.

    Attributes:
        step: Optimiser steps done.
        steps: Optimiser steps in all.
        epoch: Present epoch, from 1; 0 before the first.
        loss: Mean training loss of this epoch so far; NaN before the first step.
        stage: What is being done.
        measures: Further figures by name, such as the mean `reward` of sampled texts.
    """

    step: int
    steps: int
    epoch: int
    loss: float
    stage: str = "training"
    measures: Mapping[str, float] = field(default_factory=dict)


OnTraining = Callable[[TrainingProgress], None]


def ignore(*_: object) -> None:
    """Reports to nobody: the default of every `on_progress`."""
