"""How fast each number of an injection learns: rates by layer, and their schedule.

Knows injections and torch's Adam. Knows nothing of examples or of the model.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler

from aft_harness.boosters.injections import Injection
from aft_harness.training.recipe import Schedule


def residual_scale(hidden: Tensor) -> float:
    """Typical size of one number of the residual stream: the median token's root mean square.

    The median, because the first token of a row may be hundreds of times as large as all others.

    Args:
        hidden: Output of a layer, [tokens, hidden].
    """
    return float(hidden.float().square().mean(dim=1).sqrt().median())


def adam(injections: Mapping[int, Injection], lr: float, scales: Mapping[int, float] | None = None) -> Adam:
    """Adam over the tensors of injections.

    Adam's steps have about the size of its rate, whatever the gradient. A residual stream may be a hundred times larger
    at the top of a model than at its bottom, so that one rate is too fast here and too slow there; and the deltas of
    many layers add up, so that each of them must move less.

    Args:
        injections: By layer; their tensors require gradients.
        lr: Learning rate.
        scales: By layer, typical size of one number of the residual stream; a rate of 1 then moves all deltas together
            by about that. None takes the rate as it is.
    """
    groups = []
    for layer, injection in injections.items():
        for name, tensor in injection.tensors.items():
            scale = 1.0
            if scales:
                # What the delta is not linear in reads a normalised hidden state: its weights start at this size.
                size = scales[layer] if name in injection.linear else injection.hidden_size**-0.5
                scale = size / len(injections)
            groups.append({"params": [tensor], "lr": lr * scale})
    return Adam(groups)


def scheduler(optimiser: Optimizer, schedule: Schedule, steps: int) -> LRScheduler:
    """Multiplies every rate by the schedule's factor; to be stepped after each of `steps` steps."""
    end = 1.0 if schedule == "constant" else 0.0
    return LinearLR(optimiser, start_factor=1.0, end_factor=end, total_iters=steps)


def finite(injections: Mapping[int, Injection]) -> bool:
    """Whether every gradient of the injections' tensors is finite."""
    tensors = [tensor for injection in injections.values() for tensor in injection.tensors.values()]
    return all(bool(torch.isfinite(tensor.grad).all()) for tensor in tensors if tensor.grad is not None)
