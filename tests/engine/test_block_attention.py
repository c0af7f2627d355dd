"""Attention by products, against torch's in double precision, and in models against their fused attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from aft_harness.engine.block_attention import in_blocks, replacing_fused

HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("before", "length", "key_heads"), [(0, 5, 6), (0, 300, 2), (7, 128, 3), (200, 257, 1)])
def test_causal_attention_is_that_of_torch(before: int, length: int, key_heads: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(2)
    query = torch.randn(2, 6, length, 16, generator=draw).to(dtype)
    key, value = (torch.randn(2, key_heads, before + length, 16, generator=draw).to(dtype) for _ in range(2))
    seen = torch.ones(length, before + length, dtype=torch.bool).tril(before)
    expected = scaled_dot_product_attention(
        query.double(), key.double(), value.double(), attn_mask=seen, scale=0.3, enable_gqa=True
    )
    found = in_blocks(query, key, value, 0.3)
    assert found.dtype == dtype and found.shape == query.shape
    assert torch.allclose(found.double(), expected, atol=0.03)


@pytest.mark.parametrize("dtype", HALF)
def test_a_mask_hides_what_it_hides(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(3, 4, 300, 16, generator=draw).to(dtype) for _ in range(3))
    hidden = torch.rand(3, 1, 300, 300, generator=draw) < 0.4
    hidden |= torch.ones(300, 300, dtype=torch.bool).triu(1)
    hidden &= ~torch.eye(300, dtype=torch.bool)
    mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)
    expected = scaled_dot_product_attention(query.double(), key.double(), value.double(), attn_mask=~hidden, scale=0.3)
    assert torch.allclose(in_blocks(query, key, value, 0.3, mask).double(), expected, atol=0.03)


@pytest.mark.parametrize("architecture", ["llama", "phi", "gemma2", "qwen2", "gpt_neox"])
def test_a_model_computes_what_it_computes_and_is_left_as_it_was(architecture: str, tiny_model: Any) -> None:
    model = tiny_model(architecture).to(torch.bfloat16)
    ids = torch.arange(3, 60).expand(2, -1)
    mask = torch.full((57, 57), torch.finfo(torch.bfloat16).min, dtype=torch.bfloat16).triu(1).expand(2, 1, -1, -1)
    before = model.config._attn_implementation
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float().log_softmax(-1)
        with replacing_fused(model):
            found = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float().log_softmax(-1)
            assert (model.config._attn_implementation != before) == (before == "sdpa")
    assert model.config._attn_implementation == before
    assert (found - expected).abs().mean() < 0.05
