"""What this machine can do, and how many operations a work needs. Knows matrix products, tokens and weights."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from functools import cache
from typing import Any


@cache
def peak(dtype: str) -> float:
    """Floating-point operations a second of the fastest of some large matrix products."""
    import torch

    left, right = (torch.randn(2048, 2048).to(getattr(torch, dtype)) for _ in range(2))
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(seconds)


def processor() -> str:
    """The processor, its vector instructions and the threads in use."""
    import torch

    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def tokens(requests: Sequence[Any]) -> tuple[int, int]:
    """Distinct token prefixes of encoded requests, and how many of them predict a token of a continuation."""
    from aft_harness.engine.trie import pack

    sequences, tails = [request.inputs for request in requests], [len(request.continuation) for request in requests]
    (row,) = pack(sequences, tails, sum(map(len, sequences)))
    return len(row), len({column for tail in row.tails for column in tail.tolist()})


def operations(lm: Any, requests: Sequence[Any]) -> float:
    """Operations that scoring encoded requests needs: each prefix once, the head where a token is predicted."""
    distinct, predicting = tokens(requests)
    layer, head = _weights(lm)
    return 2.0 * (distinct * layer * len(lm.engine.layers) + predicting * head)


def training_operations(lm: Any, examples: Sequence[Any], trained: int, epochs: int) -> float:
    """Lower layers once; upper layers and the head at the answer forward and backward, each epoch."""
    right = [example.requests[example.gold[0]] for example in examples]
    count, predicting = sum(len(request.inputs) for request in right), len(right)
    layer, head = _weights(lm)
    upper = len(lm.engine.layers) - trained - 1
    return 2.0 * count * layer * (trained + 1) + epochs * 4.0 * (count * layer * upper + predicting * head)


def _weights(lm: Any) -> tuple[int, int]:
    """Weights of a decoder layer's matrix products, and of the head's."""
    layer = sum(parameter.numel() for parameter in lm.engine.layers[0].parameters() if parameter.dim() == 2)
    return layer, lm.model.get_output_embeddings().weight.numel()
