"""How much memory a training may take, and how much of it goes to what.

Knows devices, the operating system and two uses of memory: hidden states that are cached, and what a pass keeps for its
backward pass. Knows nothing of models or examples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import psutil
import torch

from aft_harness.errors import TrainingError

PASS = 2**30
"""Bytes that a pass keeps at most on a CPU unless told otherwise: larger passes are not faster there."""

_CACHED = 0.25
"""The part of what is free that cached hidden states may take."""

_FREE = 0.5
"""The part of what the machine has free that a training takes where no bound is given: others run there, too."""

_LEAST = 2**26

_IN_USE = {"cpu": 0.5, "accelerator": 0.8}
"""The part of an allocator's memory that is in use at its peak; the rest lies between blocks that are. Measured on
glibc, whose other ways cost time: blocks of their own from the system 57%, giving memory back after each pass 15%."""


@dataclass(frozen=True)
class Memory:
    """Bounds of one training, in bytes.

    Attributes:
        total: What the process, or its share of a device, takes.
        passes: What a pass keeps for its backward pass.
        cache: Cached hidden states in memory.
    """

    total: int
    passes: int
    cache: int

    @classmethod
    def of(cls, device: torch.device, total: int | None, cache: int, taken: int | None = None) -> Memory:
        """Divides what there is, once the model is loaded.

        Args:
            device: Where the model is.
            total: What the process, or on a GPU the device's share of it, may take, the model included; None is half of
                what is free.
            cache: Most bytes of cached hidden states.
            taken: What the process will have taken once a model is loaded that is not loaded yet; None is what it has
                taken now.

        Raises:
            TrainingError: The model alone takes `total`.
        """
        now = used(device)
        taken = now if taken is None else taken
        if total is None:
            free = max(int(_FREE * (available(device) + now - taken)), _LEAST)
        elif (free := total - taken) < _LEAST:
            raise TrainingError(
                f"the model alone takes {taken / 2**30:.2f} GiB, so {total / 2**30:.2f} GiB are not enough; "
                "allow more memory, or load the model in another dtype"
            )
        cache = min(cache, int(_CACHED * free))
        bounds = cls(taken + free, 0, cache)
        return bounds.left(device, taken + cache)

    def left(self, device: torch.device, taken: int | None = None) -> Memory:
        """These bounds with passes in what is left of the total.

        Args:
            device: Where the model is.
            taken: What the process has taken without passes; None is what it has taken now.
        """
        free = max(self.total - (used(device) if taken is None else taken), _LEAST)
        passes = int(free * in_use(device))
        return replace(self, passes=min(passes, PASS) if device.type == "cpu" else passes)


def in_use(device: torch.device) -> float:
    """The part of an allocator's memory that is in use at its peak, on a device."""
    return _IN_USE["cpu" if device.type == "cpu" else "accelerator"]


def used(device: torch.device) -> int:
    """Bytes that this process takes: of the device if it is a GPU, of the machine otherwise."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    return int(psutil.Process().memory_info().rss)


def available(device: torch.device) -> int:
    """Bytes that nobody takes."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return int(psutil.virtual_memory().available)
