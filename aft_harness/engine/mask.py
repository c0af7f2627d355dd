"""Who sees whom in a batch of rows: visibility by the trie, sliding windows and chunks by depth, as an additive mask.

Knows integers and tensors. Which window a model has, and for which of its layers, is `forward.py`'s business.
"""

from __future__ import annotations

import torch
from torch import Tensor


def visible(
    subtree_end: Tensor, position_ids: Tensor, *, window: int | None = None, chunk: int | None = None
) -> Tensor:
    """Say which column each column of a batch may attend to.

    Args:
        subtree_end: int64 [B, W].
        position_ids: int64 [B, W].
        window: sliding window: a token sees itself and the `window - 1` tokens before it, counted in depth.
        chunk: chunked attention: a token sees only those whose depth lies in the same chunk of this size.

    Returns:
        bool [B, W, W], indexed [row, query, key]. Every column sees itself.

    Raises:
        ValueError: a window or chunk below 1.
    """
    for name, value in (("window", window), ("chunk", chunk)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    column = torch.arange(subtree_end.shape[-1], device=subtree_end.device)
    query = column[:, None]
    seen = (column <= query) & (query < subtree_end[:, None, :])
    if window is not None:
        seen &= position_ids[:, None, :] > (position_ids - window)[:, :, None]
    if chunk is not None:
        part = position_ids // chunk
        seen &= part[:, None, :] == part[:, :, None]
    return seen


def additive_mask(visibility: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn visibility into the mask that every attention implementation may add to its scores.

    The lowest finite number stands for "hidden": minus infinity would become NaN where two masks are added.

    Args:
        visibility: bool [B, W, W] from `visible`.
        dtype: the dtype of the model's activations.

    Returns:
        `dtype` [B, 1, W, W]: 0 where visible, the lowest finite number elsewhere.
    """
    hidden = torch.zeros(visibility.shape, dtype=dtype, device=visibility.device)
    return hidden.masked_fill_(~visibility, torch.finfo(dtype).min).unsqueeze(1)
