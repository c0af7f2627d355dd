from __future__ import annotations

import pytest
import torch

from aft_harness.engine.shared_attention import attended


@pytest.mark.parametrize("masked", [False, True])
def test_parts_of_a_softmax_make_the_whole(masked: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, size, 8, generator=draw) for size in (5, 12, 12))
    mask = torch.zeros(2, 1, 1, 12)
    if masked:
        mask[0, ..., 9:] = torch.finfo(torch.float32).min
    whole = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3)
    parts = [
        attended(query, key[:, :, part], value[:, :, part], mask[..., part], 0.3)
        for part in (slice(0, 7), slice(7, 12))
    ]
    weights = torch.stack([logsum for _, logsum in parts]).softmax(0).unsqueeze(-1)
    assert torch.allclose(
        sum(part * weight for (part, _), weight in zip(parts, weights, strict=True)), whole, atol=1e-6
    )


def test_the_sum_is_that_of_the_scores() -> None:
    draw = torch.Generator().manual_seed(1)
    query, key = torch.randn(1, 2, 4, 8, generator=draw), torch.randn(1, 2, 6, 8, generator=draw)
    _, logsum = attended(query, key, key, None, 0.5)
    assert torch.allclose(logsum, (query @ key.transpose(2, 3) * 0.5).logsumexp(-1), atol=1e-6)
