"""How far a training has come, and the file that it goes on from after an interruption.

Knows losses, scores, an optimiser's schedule and a checkpoint. Knows nothing of how steps are taken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from aft_harness.boosters.injections import Injection
from aft_harness.boosters.provenance import Score
from aft_harness.training.checkpoint import Checkpoint, copied, restored
from aft_harness.training.loop import EpochLosses

SAVED_EVERY = 20.0
"""Seconds between two writings of the state within an epoch."""


class ResumableProgress:
    """How far a training has come.

    Attributes:
        epochs: Losses of each epoch that has begun.
        scores: Of the development examples after each epoch that is done; None where there are none.
        elapsed: Seconds before an interruption.
    """

    def __init__(self, checkpoint: Checkpoint, injections: Mapping[int, Injection], schedule: LRScheduler) -> None:
        """Goes on from what the checkpoint has of this training, if it has any.

        Args:
            checkpoint: Reads and writes.
            injections: What is trained.
            schedule: Of the optimiser that steps.
        """
        self._checkpoint, self._injections, self._schedule = checkpoint, injections, schedule
        self.epochs: list[EpochLosses] = []
        self.scores: list[Score | None] = []
        self.elapsed = 0.0
        self._best: tuple[float, int] | None = None
        self._tensors: dict[str, Tensor] = {}
        self._begun = self._saved = time.monotonic()
        if (found := checkpoint.load(injections, schedule.optimizer)) is not None:
            self._restore(*found)

    @property
    def epoch(self) -> int:
        """The present one, from 1."""
        return len(self.scores) + 1

    def losses(self) -> EpochLosses:
        """Those of the present epoch, to be added to."""
        if len(self.epochs) < self.epoch:
            self.epochs.append(EpochLosses())
        return self.epochs[-1]

    def end_epoch(self, score: Score | None) -> None:
        """Ends the present epoch and keeps its parameters if they are the best so far.

        Args:
            score: Of the development examples. Without them there is nothing to choose by: the last epoch is kept.
        """
        if self._best is None or score is None or score.loss < self._best[0]:
            self._best, self._tensors = (score.loss if score else math.inf, self.epoch), copied(self._injections)
        self.scores.append(score)
        self.save()

    def kept(self) -> tuple[dict[int, Injection], int]:
        """The injections of the epoch that is kept, and its number, when all epochs have ended."""
        assert self._best is not None
        return restored(self._injections, self._tensors), self._best[1]

    def save_now_and_then(self) -> None:
        """Saves the state, unless it was saved a moment ago."""
        if time.monotonic() - self._saved > SAVED_EVERY:
            self.save()

    def save(self) -> None:
        """Saves the state."""
        state = {
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "scores": [None if score is None else score.model_dump() for score in self.scores],
            "best": self._best,
            "schedule": self._schedule.state_dict(),
            "elapsed": self.elapsed + time.monotonic() - self._begun,
        }
        self._checkpoint.save(self._injections, self._schedule.optimizer, self._tensors, state)
        self._saved = time.monotonic()

    def _restore(self, state: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
        self.epochs = [EpochLosses(**epoch) for epoch in state["epochs"]]
        self.scores = [None if score is None else Score(**score) for score in state["scores"]]
        self._best, self._tensors = state["best"] and tuple(state["best"]), tensors
        self.elapsed = state["elapsed"]
        self._schedule.load_state_dict(state["schedule"])
        # The rates are made of the ones before: they go on from these very numbers.
        for group, rate in zip(self._schedule.optimizer.param_groups, state["schedule"]["_last_lr"], strict=True):
            group["lr"] = rate
