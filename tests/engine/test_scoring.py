from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_cases import alone, assert_equal, engine, made_requests

from aft_harness.boosters.booster import Booster
from aft_harness.engine import trie
from aft_harness.engine.decoder import decoder_layers
from aft_harness.engine.scoring import Request
from aft_harness.engine.steering import Steering

PACKABLE = {
    "llama": {},
    "phi": {},
    "gpt2": {},
    "opt": {},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "falcon": {},
    "gpt_neox": {},
    "mixtral": {},
    "mistral": {"sliding_window": 8},
    "gemma3_text": {"sliding_window": 8},
}


@pytest.mark.parametrize("max_tokens", [40, 130, 2000])
@pytest.mark.parametrize("architecture", PACKABLE)
def test_packed_scores_are_those_of_single_rows(tiny_model: Any, architecture: str, max_tokens: int) -> None:
    model = tiny_model(architecture, **PACKABLE[architecture])
    requests = made_requests()
    runner = engine(model)
    (found,) = runner.loglikelihoods(requests, max_tokens)
    assert_equal(found, [alone(model, request) for request in requests])
    assert runner.packed


def test_of_equally_likely_tokens_the_first_is_the_greedy_one(tiny_model: Any) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    requests = [Request((5, 6, 7), (token, 0)) for token in (0, 3, 9)]
    (found,) = engine(model).loglikelihoods(requests, 100)
    assert [greedy for _, greedy in found] == [True, False, False]
    assert_equal(found, [alone(model, request) for request in requests])


def test_steerings_in_one_pass_equal_single_runs(tiny_model: Any) -> None:
    for architecture in ("llama", "falcon", "bloom"):
        model = tiny_model(architecture)
        low, high = (Booster.static({layer: torch.randn(32)}) for layer in (1, 2))
        steerings = [None, *(Steering(model, low, strength) for strength in (0.0, 0.5, 2.0)), Steering(model, high)]
        requests = made_requests()
        runner = engine(model)
        together = runner.loglikelihoods(requests, 300, steerings=steerings)
        for steering, found in zip(steerings, together, strict=True):
            (single,) = engine(model).loglikelihoods(requests, 300, steerings=[steering])
            assert_equal(found, single)
        assert together[0] == together[1] != together[2]


def test_steerings_share_the_layers_below_them(tiny_model: Any) -> None:
    model = tiny_model("llama")
    steerings = [None, *(Steering(model, Booster.static({2: torch.randn(32)}), s) for s in (1.0, 2.0, 3.0))]
    runner, requests = engine(model), made_requests()
    runner.loglikelihoods(requests, 5000, steerings=steerings)  # the checks are behind it now
    counts = [0] * 4
    handles = []
    for index, layer in enumerate(decoder_layers(model)):
        inner = layer.mlp

        def count(module: Any, args: Any, output: Any, index: int = index) -> None:
            counts[index] += 1

        handles.append(inner.register_forward_hook(count))
    runner.loglikelihoods(requests, 5000, steerings=steerings)
    for handle in handles:
        handle.remove()
    assert counts[:3] == [counts[0]] * 3 and counts[3] == 4 * counts[0]


def test_steerings_of_different_layers_share_what_lies_below_each(tiny_model: Any) -> None:
    model = tiny_model("llama")
    low, middle = (Booster.static({layer: torch.randn(32)}) for layer in (1, 2))
    steerings = [Steering(model, middle), None, Steering(model, low)]
    runner, requests = engine(model), made_requests()
    together = runner.loglikelihoods(requests, 5000, steerings=steerings)  # the checks are behind it now
    counts = [0] * 4
    for index, layer in enumerate(decoder_layers(model)):

        def count(module: Any, args: Any, output: Any, index: int = index) -> None:
            counts[index] += 1

        layer.mlp.register_forward_hook(count)
    assert runner.loglikelihoods(requests, 5000, steerings=steerings) == together
    # Layer 2 runs below the second steering and above the first; layer 3 once for each of the three.
    assert [found / counts[0] for found in counts] == [1, 1, 2, 3]


def test_passes_stay_within_their_tokens(tiny_model: Any) -> None:
    model = tiny_model("llama")
    requests = made_requests(documents=30)
    longest = max(len(request.inputs) for request in requests)
    sizes: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda module, args, output: sizes.append(args[0].numel()))
    for rows in (1, 4):
        runner = engine(model)
        runner.compare_lengths(requests)  # once, a few layers of two rows
        sizes.clear()
        runner.loglikelihoods(requests, rows * longest)
        assert max(sizes) <= rows * longest


def test_truncation_keeps_the_end() -> None:
    request = Request(tuple(range(10)), (10, 11, 12))
    assert request.truncated(12) is request
    assert request.truncated(5).context == (7, 8, 9) and request.truncated(5).continuation == (10, 11, 12)
    assert len(request.truncated(5).inputs) == 5


def test_half_precision_scores_follow_the_dtype_of_the_softmax(tiny_model: Any) -> None:
    model = tiny_model("gpt2").to(torch.bfloat16)
    requests = made_requests()
    (rounded,) = engine(model, packed=False).loglikelihoods(requests, 200, softmax_dtype=None)
    (fine,) = engine(model, packed=False).loglikelihoods(requests, 200)
    for (score, _), (exact, _) in zip(rounded, fine, strict=True):
        assert score == float(torch.tensor(score, dtype=torch.bfloat16))
        assert score == pytest.approx(exact, rel=0.02)
    assert any(score != float(torch.tensor(score, dtype=torch.bfloat16)) for score, _ in fine)


def test_requests_are_sorted_into_a_trie_once(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, requests = engine(tiny_model("llama")), made_requests()
    runner.loglikelihoods(requests, 500)  # the checks are behind it now
    built: list[int] = []
    monkeypatch.setattr(trie, "_leaves", lambda sequences, sort=trie._leaves: built.append(1) or sort(sequences))
    runner.loglikelihoods(requests, 500)
    assert built == [1]
