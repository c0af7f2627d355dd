"""Attention by plain matrix products, block by block: quicker than torch's fused attention on a CPU in half precision.

Knows tensors, and how transformers calls an attention function. Knows nothing of rows, texts or caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from aft_harness.errors import ModelError

NAME = "aft_blocks"
"""Under which transformers knows the function."""

UNKNOWN = ("softcap", "s_aux", "position_bias", "head_mask")
"""What a model may ask of its attention beside the usual: none of it is done here."""

_BLOCK = 128
"""Queries whose scores are computed together: a block of scores of all heads stays in the processor's cache."""


def is_quicker(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether attention is quicker by products there."""
    return device.type == "cpu" and dtype in (torch.bfloat16, torch.float16)


def in_blocks(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Causal attention. What stands behind a block of queries is not computed.

    Args:
        query: [rows, heads, queries, size]; the last query is at the place of the last key.
        key: [rows, key heads, keys, size], with at least as many keys as queries.
        value: Likewise.
        scale: By which scores are multiplied.
        mask: What is added to the scores, [rows, 1, queries, keys]; hides at least all later keys. None hides these.

    Returns:
        [rows, heads, queries, size].
    """
    rows, heads, length, size = query.shape
    before, shared = key.shape[2] - length, key.shape[1]
    grouped = query.view(rows, shared, heads // shared, length, size)
    found = torch.empty_like(grouped)
    for start in range(0, length, _BLOCK):
        end = min(start + _BLOCK, length)
        seen = before + end
        # The query heads of one key head are laid out as if they were tokens, so that no key is repeated.
        part = grouped[:, :, :, start:end].reshape(rows, shared, -1, size)
        scores = (part @ key[:, :, :seen].transpose(2, 3)).float().mul_(scale)
        by_head = scores.view(rows, shared, -1, end - start, seen)
        if mask is not None:
            by_head += mask[:, :, None, start:end, :seen]
        else:
            later = scores.new_full((end - start, end - start), torch.finfo(scores.dtype).min).triu(1)
            by_head[..., before + start :] += later
        weights = scores.softmax(-1).to(value.dtype)
        found[:, :, :, start:end] = (weights @ value[:, :, :seen]).view(rows, shared, -1, end - start, size)
    return found.view(rows, heads, length, size)


@contextmanager
def attention_by(model: Any, name: str, function: Callable[..., tuple[Tensor, None]]) -> Iterator[None]:
    """In this block a function is a model's attention.

    Args:
        model: The model.
        name: Under which transformers knows the function.
        function: As transformers calls it.

    Raises:
        ModelError: The model takes no attention function.
    """
    if not _takes_functions(model):
        raise ModelError(f"{type(model).__name__} has an attention of its own")
    before = model.config._attn_implementation
    AttentionInterface.register(name, function)
    try:
        model.set_attn_implementation(name)
        yield
    finally:
        model.set_attn_implementation(before)


def _takes_functions(model: Any) -> bool:
    takes = getattr(model, "_can_set_attn_implementation", None)  # asked first, or transformers warns
    return takes is not None and bool(takes())


@contextmanager
def replacing_fused(model: Any) -> Iterator[None]:
    """In this block a model that would use torch's fused attention uses `in_blocks` instead.

    All that it is given must be causal, with a mask that says so: transformers makes none for functions it does not
    know.
    """
    fused = getattr(model.config, "_attn_implementation", None) == "sdpa"
    with attention_by(model, NAME, _attention) if fused and _takes_functions(model) else nullcontext():
        yield


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: query [rows, heads, tokens, size of a head], returns [rows, tokens, heads, size]."""
    usual = all(kwargs.get(name) is None for name in UNKNOWN) and not dropout
    if attention_mask is None or not is_quicker(query.device, query.dtype) or torch.is_grad_enabled() or not usual:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return found
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = in_blocks(query.contiguous(), key, value, scale, attention_mask)
    return output.transpose(1, 2).contiguous(), None
