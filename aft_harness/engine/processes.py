"""Processes that run the same program side by side, as `accelerate launch` starts them, and what they tell each other.

Knows torch's process groups. Knows nothing of what is shared.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from aft_harness.engine.part import Part

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among its equals. All of them must make the same calls in the same order.

    Attributes:
        rank: Which one this is, from 0.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def present(cls) -> Processes:
        """Those of this machine that torch has joined; where there are none, or others elsewhere, this one alone."""
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return ALONE
        if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) != distributed.get_world_size():
            return ALONE
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def part(self) -> Part:
        """The passes that are this process's."""
        return Part(self.rank, self.count)

    def of(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share of some items: every `count`-th."""
        return items[self.rank :: self.count]

    def joined(self, share: Sequence[T]) -> list[T]:
        """The items of which each process has its share, in their order."""
        parts = self.gathered(list(share))
        return [parts[place % self.count][place // self.count] for place in range(sum(map(len, parts)))]

    def gathered(self, value: T) -> list[T]:
        """What every process has at this place, by rank."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(found, value)
        return found

    def merged(self, found: Mapping[int, T]) -> dict[int, T]:
        """What all processes found, by place."""
        return {place: value for share in self.gathered(dict(found)) for place, value in share.items()}

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Sums tensors over all processes, in place."""
        if self.count > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)


ALONE = Processes()
