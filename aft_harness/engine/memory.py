"""How much memory was used, and giving back what is not. Knows modules, devices and the operating system."""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
from collections.abc import Sequence

import torch
from torch import nn


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
    """Gives memory back that nothing uses, but an allocator keeps: glibc's to the system, and torch's to the GPU."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim()


def trim() -> None:
    """Gives memory back to the system that glibc's allocator keeps between blocks in use."""
    if sys.platform == "linux" and (malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        malloc_trim(0)


def discard_weights(model: nn.Module, layers: Sequence[nn.Module]) -> int:
    """Takes the weights out of layers that no pass will run again; the model is of no use without that.

    What the rest of the model uses as well stays, and so do quantised weights and those that accelerate moves about.

    Args:
        model: The whole model.
        layers: Modules of it.

    Returns:
        Bytes that the weights took.
    """
    inside = {module for layer in layers for module in layer.modules()}
    kept = {_storage(each) for module in set(model.modules()) - inside for each in module.parameters(recurse=False)}
    freed = 0
    for module in inside:
        for name, parameter in module.named_parameters(recurse=False):
            plain = type(parameter) is nn.Parameter and not hasattr(module, "_hf_hook")
            if plain and not parameter.is_meta and _storage(parameter) not in kept:
                freed += parameter.nbytes
                _forget(parameter)
                # In its place there still is a parameter of that shape and dtype, which models are asked for.
                setattr(module, name, nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False))
    return freed


def _forget(parameter: nn.Parameter) -> None:
    """Gives the pages of a parameter back: a checkpoint's file that weights are read from stays mapped as a whole."""
    if sys.platform == "linux" and parameter.device.type == "cpu" and parameter.is_contiguous():
        page = mmap.PAGESIZE
        begin = -(-parameter.data_ptr() // page) * page
        if (length := (parameter.data_ptr() + parameter.nbytes) // page * page - begin) > 0:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def _storage(parameter: nn.Parameter) -> int:
    return parameter.untyped_storage().data_ptr() if type(parameter) is nn.Parameter else id(parameter)
