from __future__ import annotations

import math

import torch

from aft_harness.engine.text_batch import drawn


def test_tokens_are_drawn_by_their_probability() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]])
    draws = (torch.arange(2000) + 0.5) / 2000
    tokens = drawn(logits.expand(2000, 4), 2.0, draws)
    shares = torch.bincount(tokens, minlength=4) / 2000
    assert torch.allclose(shares, (logits / 2.0).softmax(-1)[0], atol=1e-3)
    assert drawn(logits, 1.0, torch.tensor([1.0])).item() == 3
    assert math.isclose(float(shares.sum()), 1.0)
