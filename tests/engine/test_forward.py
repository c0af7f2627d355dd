from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_cases import alone, assert_equal, engine, made_requests

from aft_harness.engine.decoder import decoder_layers


def test_the_head_runs_on_predicting_positions_only(tiny_model: Any) -> None:
    model = tiny_model("llama")
    runner, requests = engine(model), made_requests()
    runner.loglikelihoods(requests, 5000)
    rows: list[int] = []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: rows.append(output.shape[:-1].numel()))
    runner.loglikelihoods(requests, 5000)
    handle.remove()
    predicted = {
        (*request.inputs[: len(request.inputs) - back],)
        for request in requests
        for back in range(len(request.continuation))
    }
    assert sum(rows) == len(predicted)


def test_the_last_mlp_runs_only_where_a_token_is_predicted(tiny_model: Any) -> None:
    model = tiny_model("llama")
    requests = made_requests()
    layers = decoder_layers(model)
    widest = {}
    for index in (2, 3):

        def note(module: Any, args: Any, output: torch.Tensor, index: int = index) -> None:
            widest[index] = max(widest.get(index, 0), output[..., 0].numel())

        layers[index].mlp.gate_proj.register_forward_hook(note)  # type: ignore[union-attr, operator]
    found = engine(model).loglikelihoods(requests, 4096)[0]
    assert_equal(found, [alone(model, request) for request in requests])
    assert widest[3] <= sum(len(request.continuation) for request in requests) < widest[2]


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3_text", "gpt2", "bloom"])
def test_half_precision_is_differentiated_through_plain_attention(tiny_model: Any, architecture: str) -> None:
    model = tiny_model(architecture).to(torch.bfloat16)
    runner, requests = engine(model), made_requests()
    before = model.config._attn_implementation
    (fused,) = runner.loglikelihoods(requests, 500)
    with pytest.raises(RuntimeError, match="boom"), runner.differentiated():
        assert model.config._attn_implementation == "eager"
        (plain,) = runner.loglikelihoods(requests, 500)
        assert model.config._attn_implementation == "eager"
        raise RuntimeError("boom")
    assert model.config._attn_implementation == before
    assert max(abs(left - right) for (left, _), (right, _) in zip(fused, plain, strict=True)) < 0.2


def test_single_precision_keeps_the_attention_it_has(tiny_model: Any) -> None:
    model = tiny_model("llama")
    with engine(model).differentiated():
        assert model.config._attn_implementation == "sdpa"
