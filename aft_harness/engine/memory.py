"""How much memory was used, and giving back what is not. Knows devices and the operating system."""

from __future__ import annotations

import ctypes
import gc
import sys

import torch


def peak_memory(device: torch.device) -> int | None:
    """Largest memory so far, bytes: of the device when it is a GPU, of this process otherwise; None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def release() -> None:
    """Gives memory back to the operating system that nothing uses, but glibc's allocator keeps: a gigabyte or more."""
    gc.collect()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
