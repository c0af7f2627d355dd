"""What a pass over one batch finds of requests. Knows tensors; runs no model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Scores:
    """What a pass over one batch found.

    Attributes:
        members: Indices of the requests that were scored.
        loglikelihoods: Summed over each continuation's tokens, [len(members)]; differentiable.
        greedy: Whether every token of a continuation was the model's first choice, bool [len(members)].
    """

    members: tuple[int, ...]
    loglikelihoods: Tensor
    greedy: Tensor


class ScoreTable:
    """What a batch scores under several steerings, in two tensors.

    Small tensors that live on between the large ones of each pass would keep the memory of these from being used again:
    1,000 boosters took a gigabyte more.
    """

    def __init__(self, steerings: int) -> None:
        """Makes an empty table.

        Args:
            steerings: How many there are.
        """
        self._count = steerings
        self._members: tuple[int, ...] = ()
        self._sums, self._greedy = torch.empty(steerings, 0), torch.empty(steerings, 0)

    def put(self, index: int, scores: Scores) -> None:
        """Takes the scores of a steering; all steerings have the same members."""
        if not self._members:
            self._members, size = scores.members, (self._count, len(scores.members))
            self._sums, self._greedy = scores.loglikelihoods.new_empty(size), scores.greedy.new_empty(size)
        self._sums[index], self._greedy[index] = scores.loglikelihoods, scores.greedy

    def rows(self) -> list[Scores]:
        """The scores by steering."""
        return [Scores(self._members, *found) for found in zip(self._sums, self._greedy, strict=True)]
