from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from aft_harness.boosters.booster import Booster
from aft_harness.engine import packing
from aft_harness.engine.scoring import Engine, Request
from aft_harness.engine.steering import Steering, decoder_layers

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
UNPACKABLE = {"bloom": {}, "mamba": {}, "falcon": {"alibi": True}}


def made_requests(seed: int = 0, documents: int = 10) -> list[Request]:
    """Documents with four continuations each, some sharing a long prefix, one twice."""
    rng = random.Random(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randint(3, 300) for _ in range(rng.randint(low, high)))

    shots = tokens(12, 12)
    found = []
    for document in range(documents):
        context = (shots if document % 2 else ()) + tokens(3, 25)
        found += [Request(context, tokens(1, 5)) for _ in range(4)]
    return [*found, found[0], Request(found[0].context, found[0].continuation[:1])]


def engine(model: Any, **kwargs: Any) -> Engine:
    return Engine(model, decoder_layers(model), torch.device("cpu"), **kwargs)


def alone(model: Any, request: Request) -> tuple[float, bool]:
    """The oracle: the request in a row of its own, and plain PyTorch."""
    with torch.no_grad():
        logits = model(torch.tensor([request.inputs])).logits[0, -len(request.continuation) :]
    targets = torch.tensor(request.continuation)
    score = logits.log_softmax(-1).gather(1, targets[:, None]).sum()
    return float(score), bool((logits.argmax(-1) == targets).all())


def assert_equal(found: list[tuple[float, bool]], expected: list[tuple[float, bool]]) -> None:
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert max(abs(one - other) for (one, _), (other, _) in zip(found, expected, strict=True)) < 1e-4


@pytest.mark.parametrize("max_tokens", [40, 130, 2000])
@pytest.mark.parametrize("architecture", PACKABLE)
def test_packed_scores_are_those_of_single_rows(tiny_model: Any, architecture: str, max_tokens: int) -> None:
    model = tiny_model(architecture, **PACKABLE[architecture])
    requests = made_requests()
    runner = engine(model)
    (found,) = runner.loglikelihoods(requests, max_tokens)
    assert_equal(found, [alone(model, request) for request in requests])
    assert runner.packed


@pytest.mark.parametrize("architecture", UNPACKABLE)
def test_models_that_take_no_tree_mask_get_plain_rows(tiny_model: Any, architecture: str) -> None:
    model = tiny_model(architecture, **UNPACKABLE[architecture])
    requests = made_requests()
    runner = engine(model)
    (found,) = runner.loglikelihoods(requests, 500)
    assert_equal(found, [alone(model, request) for request in requests])
    assert not runner.packed


def test_a_window_is_noticed_only_by_rows_that_are_longer(tiny_model: Any) -> None:
    # The trap: a mask without the window agrees on short rows, so what was checked must grow with the rows.
    model = tiny_model("mistral", sliding_window=16)
    runner = engine(model)
    runner._mask_forms = runner._mask_forms[-1:]  # the form that forgets the window
    short = [Request((5, 6, 7), (8, 9)), Request((5, 6, 7), (10,))]
    (found,) = runner.loglikelihoods(short, 100)
    assert runner.packed
    assert_equal(found, [alone(model, request) for request in short])
    requests = made_requests()
    (found,) = runner.loglikelihoods(requests, 500)
    assert not runner.packed
    assert_equal(found, [alone(model, request) for request in requests])


def test_a_long_row_without_branches_proves_nothing_about_branches(tiny_model: Any) -> None:
    # A recurrent model agrees with itself on a chain; the tree beside it is what it cannot take.
    model = tiny_model("mamba")
    requests = [Request(tuple(range(3, 90)), (5, 6)), *made_requests(documents=3)]
    runner = engine(model)
    (found,) = runner.loglikelihoods(requests, 500)
    assert not runner.packed
    assert_equal(found, [alone(model, request) for request in requests])


def test_the_check_costs_two_plain_rows(tiny_model: Any) -> None:
    model, requests = tiny_model("llama"), made_requests()
    sizes: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda module, args, output: sizes.append(args[0].numel()))
    runner = engine(model)
    runner.loglikelihoods(requests, 5000)
    first = [size for size in sizes if size > 2]  # trying whether logits can be kept takes two tokens
    sizes.clear()
    runner.loglikelihoods(requests, 5000)
    assert len(first) == len(sizes) + 2


def test_of_equally_likely_tokens_the_first_is_the_greedy_one(tiny_model: Any) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    requests = [Request((5, 6, 7), (token, 0)) for token in (0, 3, 9)]
    (found,) = engine(model).loglikelihoods(requests, 100)
    assert [greedy for _, greedy in found] == [True, False, False]
    assert_equal(found, [alone(model, request) for request in requests])


def test_variants_in_one_pass_equal_single_runs(tiny_model: Any) -> None:
    for architecture in ("llama", "falcon", "bloom"):
        model = tiny_model(architecture)
        low, high = (Booster.static({layer: torch.randn(32)}) for layer in (1, 2))
        variants = [None, *(Steering(model, low, strength) for strength in (0.0, 0.5, 2.0)), Steering(model, high)]
        requests = made_requests()
        runner = engine(model)
        together = runner.loglikelihoods(requests, 300, variants=variants)
        for variant, found in zip(variants, together, strict=True):
            (single,) = engine(model).loglikelihoods(requests, 300, variants=[variant])
            assert_equal(found, single)
        assert together[0] == together[1] != together[2]


def test_variants_share_the_layers_below_them(tiny_model: Any) -> None:
    model = tiny_model("llama")
    variants = [None, *(Steering(model, Booster.static({2: torch.randn(32)}), s) for s in (1.0, 2.0, 3.0))]
    runner, requests = engine(model), made_requests()
    runner.loglikelihoods(requests, 5000, variants=variants)  # the checks are behind it now
    counts = [0] * 4
    handles = []
    for index, layer in enumerate(decoder_layers(model)):
        inner = layer.mlp

        def count(module: Any, args: Any, output: Any, index: int = index) -> None:
            counts[index] += 1

        handles.append(inner.register_forward_hook(count))
    runner.loglikelihoods(requests, 5000, variants=variants)
    for handle in handles:
        handle.remove()
    assert counts[:3] == [counts[0]] * 3 and counts[3] == 4 * counts[0]


def test_variants_of_different_layers_share_what_lies_below_each(tiny_model: Any) -> None:
    model = tiny_model("llama")
    low, middle = (Booster.static({layer: torch.randn(32)}) for layer in (1, 2))
    variants = [Steering(model, middle), None, Steering(model, low)]
    runner, requests = engine(model), made_requests()
    together = runner.loglikelihoods(requests, 5000, variants=variants)  # the checks are behind it now
    counts = [0] * 4
    for index, layer in enumerate(decoder_layers(model)):

        def count(module: Any, args: Any, output: Any, index: int = index) -> None:
            counts[index] += 1

        layer.mlp.register_forward_hook(count)
    assert runner.loglikelihoods(requests, 5000, variants=variants) == together
    # Layer 2 runs below the second variant and above the first; layer 3 once for each of the three.
    assert [found / counts[0] for found in counts] == [1, 1, 2, 3]


def test_an_upper_layer_that_uses_more_of_the_lower_ones_is_run_in_full(tiny_model: Any) -> None:
    model = tiny_model("llama")
    layers = decoder_layers(model)
    seen: list[torch.Tensor] = []
    layers[0].register_forward_hook(lambda module, args, output: seen.append(2 * output))
    layers[3].register_forward_hook(lambda module, args, output: output + seen[-1])
    layers[3].register_forward_hook(lambda module, args, output: output + torch.randn_like(output))
    runner = engine(model, packed=False)
    batch = packing.batches(packing.pack([(5, 6, 7)], [1], 1), 100)[0]
    assert not runner.resumes(batch, 1)


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


@pytest.mark.parametrize("accepts", ["a number", "nothing"])
def test_a_model_that_keeps_no_logits_by_position_gets_its_head_run_everywhere(tiny_model: Any, accepts: str) -> None:
    model = tiny_model("llama")
    requests = made_requests()
    expected = [alone(model, request) for request in requests]
    forward = model.forward

    def older(input_ids: Any, logits_to_keep: int = 0, **kwargs: Any) -> Any:
        if not isinstance(logits_to_keep, int):
            raise IndexError("too many indices for tensor of dimension 3")
        return forward(input_ids, **kwargs)

    model.forward = older if accepts == "a number" else lambda input_ids, **kwargs: forward(input_ids, **kwargs)
    runner = engine(model)
    (found,) = runner.loglikelihoods(requests, 500)
    assert runner.packed
    assert_equal(found, expected)


def test_passes_stay_within_their_tokens(tiny_model: Any) -> None:
    model = tiny_model("llama")
    requests = made_requests(documents=30)
    longest = max(len(request.inputs) for request in requests)
    sizes: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda module, args, output: sizes.append(args[0].numel()))
    for rows in (1, 4):
        sizes.clear()
        engine(model).loglikelihoods(requests, rows * longest)
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
    assert max(abs(one - other) for (one, _), (other, _) in zip(fused, plain, strict=True)) < 0.2


def test_single_precision_keeps_the_attention_it_has(tiny_model: Any) -> None:
    model = tiny_model("llama")
    with engine(model).differentiated():
        assert model.config._attn_implementation == "sdpa"


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
