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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_hides_what_the_mask_hides(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(2, 3, size, 16, generator=draw).to(dtype) for size in (4, 12, 12))
    mask = torch.zeros(2, 1, 1, 12, dtype=dtype)
    mask[0, ..., 9:] = torch.finfo(dtype).min
    output, logsum = attended(query, key, value, mask, 0.3)
    scores = (query.double() @ key.double().transpose(2, 3)) * 0.3 + mask.double()
    assert torch.allclose(logsum.double(), scores.logsumexp(-1), atol=0.03)
    assert torch.allclose(output.double(), scores.softmax(-1) @ value.double(), atol=0.03)
    value[0, :, 9:] = 1e4
    assert torch.equal(attended(query, key, value, mask, 0.3)[0], output)
