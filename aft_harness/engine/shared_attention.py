"""Attention of texts that are written side by side to what they share and to their own tails.

Knows how transformers calls an attention function, and the cache of `shared_cache.py`. Knows nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from aft_harness.engine.block_attention import UNKNOWN, attention_by, in_blocks, is_quicker
from aft_harness.engine.shared_cache import Level, SharedCache
from aft_harness.errors import ModelError

NAME = "aft_shared"
"""Under which transformers knows the function."""

_active: list[SharedCache] = []


@contextmanager
def attending(model: Any, cache: SharedCache) -> Iterator[None]:
    """In this block a model's attention looks at the cache.

    Raises:
        ModelError: The model takes no attention function.
    """
    _active.append(cache)
    try:
        with attention_by(model, NAME, _attention):
            yield
    finally:
        _active.pop()


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: query [rows, heads, tokens, size of a head], returns [rows, tokens, heads, size]."""
    if attention_mask is not None or any(kwargs.get(name) is not None for name in UNKNOWN):
        raise ModelError("this model's attention is none that texts can share")
    cache, scale = _active[-1], query.shape[-1] ** -0.5 if scaling is None else scaling
    found = (
        _read(cache, query, key, value, scale)
        if cache.reading is not None
        else _written(cache, query, key, value, scale)
    )
    return found.transpose(1, 2).contiguous(), None


def _read(cache: SharedCache, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention of rows that are read, to what they follow and to themselves."""
    assert cache.reading is not None
    rows, length = key.shape[0], key.shape[2]
    if cache.reading:
        key, value = (
            torch.cat([*(kept.expand(rows, *kept.shape) for kept in parts), new], dim=2)
            for parts, new in (
                ([segment.keys[cache.layer] for segment in cache.reading], key),
                ([segment.values[cache.layer] for segment in cache.reading], value),
            )
        )
    if is_quicker(query.device, query.dtype):
        return in_blocks(query.contiguous(), key, value, scale)
    before = key.shape[2] - length
    if (groups := query.shape[1] // key.shape[1]) > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if not before:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    seen = torch.ones(length, before + length, dtype=torch.bool, device=key.device).tril(before)
    return scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale)


def _written(cache: SharedCache, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention of one token a text, [texts, heads, 1, size], to its tail and to what it shares with others.

    The query heads of one key head are laid out as if they were tokens, so that nothing is repeated. Each part has a
    softmax of its own; parts are added by the share that each has of all.
    """
    texts, heads, _, size = query.shape
    grouped = query.view(texts, key.shape[1], heads // key.shape[1], size)
    if not cache.levels and not is_quicker(query.device, query.dtype):
        return scaled_dot_product_attention(grouped, key, value, attn_mask=cache.mask, scale=scale).view_as(query)
    parts = [attended(grouped, key, value, cache.mask, scale)]
    if not cache.levels:
        return parts[0][0].view_as(query)
    parts += [_shared(cache, level, grouped, scale) for level in cache.levels]
    # [parts, texts, key heads, query heads a key head]
    weights = torch.stack([logsum for _, logsum in parts]).softmax(0).unsqueeze(-1)
    found = sum(output * weight for (output, _), weight in zip(parts, weights, strict=True))
    assert isinstance(found, Tensor)
    return found.to(query.dtype).view_as(query)


def _shared(cache: SharedCache, level: Level, query: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of all texts to the segments of a level, in the texts' order."""
    _, key_heads, groups, size = query.shape
    segments, most = level.order.shape
    gathered = query[level.order.flatten()].view(segments, most, key_heads, groups, size)
    gathered = gathered.transpose(1, 2).reshape(segments, key_heads, most * groups, size)
    output, logsum = attended(gathered, level.keys[cache.layer], level.values[cache.layer], level.mask, scale)
    output = output.reshape(segments, key_heads, most, groups, size).transpose(1, 2).flatten(0, 1)[level.places]
    logsum = logsum.reshape(segments, key_heads, most, groups).transpose(1, 2).flatten(0, 1)[level.places]
    if level.absent is not None:
        logsum = logsum.masked_fill(level.absent[:, None, None], -torch.inf)
    return output, logsum


def attended(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention, and the logarithm of the sum by which its softmax divides.

    Args:
        query: [rows, heads, queries, size].
        key: [rows, heads, keys, size].
        value: Likewise.
        mask: Added to the scores, [rows, 1, 1, keys], or None.
        scale: By which scores are multiplied.

    Returns:
        [rows, heads, queries, size], and float32 [rows, heads, queries].
    """
    if query.device.type == "cpu" and not is_quicker(query.device, query.dtype):
        # torch's fused attention knows the sum and keeps it to itself.
        if mask is not None:
            mask = mask.expand(-1, 1, query.shape[2], -1)
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=mask, scale=scale
        )
        return found[0], found[1]
    scores = (query @ key.transpose(2, 3)).float().mul_(scale)
    if mask is not None:
        scores += mask
    logsum = scores.logsumexp(-1)
    return scores.sub_(logsum.unsqueeze(-1)).exp_().to(value.dtype) @ value, logsum
