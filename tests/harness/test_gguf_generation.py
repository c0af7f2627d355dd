from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.generation.logits_process import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from aft_harness.errors import TaskError
from aft_harness.harness.gguf_generation import _chooser, _narrowed


@pytest.mark.parametrize(
    ("settings", "warper"),
    [
        ({"top_k": 5}, TopKLogitsWarper(5)),
        ({"top_p": 0.6}, TopPLogitsWarper(0.6)),
        ({"min_p": 0.3}, MinPLogitsWarper(0.3)),
    ],
)
def test_unlikely_tokens_are_left_out_as_transformers_leaves_them_out(settings: dict, warper: Any) -> None:
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) * 2
    found = _narrowed(logits.softmax(dim=-1), **settings)
    expected = warper(torch.zeros(6, 1, dtype=torch.long), logits.clone()).softmax(dim=-1)
    assert torch.equal(found > 0, expected > 0)
    assert torch.allclose(found / found.sum(dim=-1, keepdim=True), expected, atol=1e-6)


def test_greedy_takes_the_likeliest_and_sampling_what_is_drawn() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]]).repeat(2000, 1)
    for settings in ({}, {"temperature": 0.0}, {"do_sample": True, "temperature": 0.0}, {"num_beams": 1}):
        assert set(_chooser(settings)(logits).tolist()) == {1}
    torch.manual_seed(0)
    drawn = _chooser({"do_sample": True, "temperature": 2.0})(logits)
    shares = torch.bincount(drawn, minlength=3) / len(drawn)
    assert torch.allclose(shares, (logits[0] / 2).softmax(dim=-1), atol=0.04)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(TaskError, match="no generation setting num_beams, repetition_penalty"):
        _chooser({"num_beams": 4, "repetition_penalty": 1.2})
