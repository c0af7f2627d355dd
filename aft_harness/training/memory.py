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
        passes: What a pass keeps for its backward pass.
        cache: Cached hidden states in memory.
    """

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
        return cls(_capped(int((free - cache) * in_use(device)), device), cache)

    def with_more(self, freed: int, device: torch.device) -> Memory:
        """These bounds once so many bytes of weights have been discarded: they go to the passes."""
        return replace(self, passes=_capped(self.passes + int(freed * in_use(device)), device))


def _capped(passes: int, device: torch.device) -> int:
    return min(passes, PASS) if device.type == "cpu" else passes


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
