"""Examples in rows: each under its own index, and the same numbers whether lower layers are cached or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from training_cases import examples, make_lm, plain_loglikelihood

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.injections import StaticInjection
from aft_harness.engine.footprint import Footprint, footprint
from aft_harness.engine.scoring import Request
from aft_harness.engine.steering import Steering, training_injections
from aft_harness.harness.model import SteeredHFLM
from aft_harness.training import prepared
from aft_harness.training.hidden_states import HiddenStates
from aft_harness.training.prepared import PreparedExamples


def requests_of(lm: SteeredHFLM, **selection: Any) -> list[tuple[Request, ...]]:
    return [example.requests for example in examples(lm, **selection).train]


def expected(lm: SteeredHFLM, requests: list[tuple[Request, ...]]) -> list[Tensor]:
    return [torch.stack([plain_loglikelihood(lm.model, request) for request in each]) for each in requests]


def assert_equal(found: list[Tensor], others: list[Tensor]) -> None:
    assert len(found) == len(others)
    for ours, theirs in zip(found, others, strict=True):
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("packing", ["on", "off"])
def test_loglikelihoods_are_those_of_plain_rows_in_any_order(packing: str) -> None:
    lm = make_lm("gpt2", packing=packing)
    requests = requests_of(lm, limit=7)
    found = PreparedExamples(lm.engine, requests)
    assert len(found) == 7
    whole = expected(lm, requests)
    assert_equal(found.loglikelihoods(range(7)), whole)
    assert_equal(found.loglikelihoods([5, 0, 3]), [whole[5], whole[0], whole[3]])


@pytest.mark.parametrize("cached", [False, True])
def test_equal_examples_are_each_counted(cached: bool) -> None:
    lm = make_lm("gpt2")
    first, second = requests_of(lm, limit=2)
    copy = tuple(Request(request.context, request.continuation) for request in first)
    assert copy == first and copy is not first
    requests = [first, second, first, copy]  # the same object twice, and an equal one
    found = PreparedExamples(lm.engine, requests)
    with HiddenStates(10**9) as hidden:
        if cached:
            found.cache(1, hidden)
        assert len(found) == 4 and sorted(index for chunk in found.chunks(range(4)) for index in chunk) == [0, 1, 2, 3]
        assert_equal(found.loglikelihoods(range(4)), expected(lm, requests))
        assert_equal(found.loglikelihoods([2, 2, 0]), expected(lm, [first, first, first]))


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_cached_passes_equal_full_passes(layer: int) -> None:
    lm = make_lm("gpt2")
    requests = requests_of(lm, limit=9)
    booster = Booster.static({layer: torch.linspace(-1, 1, 32)})
    full, cached = PreparedExamples(lm.engine, requests), PreparedExamples(lm.engine, requests)
    seen: list[tuple[int, int]] = []
    with HiddenStates(10**9) as hidden, Steering(lm.model, booster):
        plain = expected(lm, requests)
        assert_equal(full.loglikelihoods(range(9)), plain)
    with HiddenStates(10**9) as hidden:
        cached.cache(layer, hidden, lambda done, total: seen.append((done, total)))
        assert len(hidden) > 0 and seen[-1] == (9, 9)
        with Steering(lm.model, booster):
            assert_equal(cached.loglikelihoods([8, *range(8)]), [plain[8], *plain[:8]])


def test_what_is_cached_runs_no_layer_below() -> None:
    lm = make_lm("gpt2")
    found = PreparedExamples(lm.engine, requests_of(lm, limit=4))
    with HiddenStates(10**9) as hidden:
        found.cache(2, hidden)
        runs = [0] * 4
        for index, layer in enumerate(lm.engine.layers):

            def count(*_: Any, index: int = index) -> None:
                runs[index] += 1

            layer.attn.register_forward_hook(count)
        found.loglikelihoods(range(4))
    assert runs[:3] == [0, 0, 0] and runs[3] > 0


@pytest.mark.parametrize("cached", [False, True])
def test_the_residual_stream_is_that_of_the_examples_tokens(cached: bool) -> None:
    lm = make_lm("gpt2")
    requests = requests_of(lm, limit=5)
    found = PreparedExamples(lm.engine, requests)
    with HiddenStates(10**9) as hidden:
        if cached:
            found.cache(1, hidden)
        outputs = found.residual([1, 2], [3, 1])
    distinct: dict[int, list[Tensor]] = {1: [], 2: []}
    for index in (3, 1):
        known = set()
        for request in requests[index]:
            states = lm.model(torch.tensor([request.inputs]), output_hidden_states=True).hidden_states
            for place in range(len(request.inputs)):
                if request.inputs[: place + 1] not in known:
                    known.add(request.inputs[: place + 1])
                    for layer, rows in distinct.items():
                        rows.append(states[layer + 1][0, place])
    for layer, rows in distinct.items():  # in whatever order: sorted by their first number
        ours, plain = outputs[layer], torch.stack(rows)
        assert ours.shape == plain.shape
        torch.testing.assert_close(ours[ours[:, 0].argsort()], plain[plain[:, 0].argsort()].detach())


def test_chunks_keep_the_order_and_fit_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "TOKENS_PER_PASS", 120)
    lm = make_lm("gpt2")
    requests = requests_of(lm, limit=9)
    found = PreparedExamples(lm.engine, requests)
    sizes = [len({each.inputs[: n + 1] for each in some for n in range(len(each.inputs))}) for some in requests]
    order = [4, 0, 8, 1, 2, 3, 7, 6, 5]
    chunks = list(found.chunks(order))
    assert [index for chunk in chunks for index in chunk] == order and len(chunks) > 1
    for chunk, following in zip(chunks, [*chunks[1:], None], strict=True):
        assert len(chunk) == 1 or sum(sizes[index] for index in chunk) <= 120
        if following:  # as many as fit
            assert sum(sizes[index] for index in (*chunk, following[0])) > 120
    assert_equal(found.loglikelihoods(order), expected(lm, [requests[index] for index in order]))


def test_chunks_keep_what_they_may() -> None:
    lm = make_lm("gpt2")
    requests = requests_of(lm, limit=9)
    found = PreparedExamples(lm.engine, requests)
    predictions = [sum(len(each.continuation) for each in some) for some in requests]
    found.bound(Footprint(0.0, 0.0, 10.0), limit := 10.0 * (max(predictions) + 1))
    chunks = list(found.chunks(range(9)))
    assert [index for chunk in chunks for index in chunk] == list(range(9)) and len(chunks) > 2
    for chunk, following in zip(chunks, [*chunks[1:], None], strict=True):
        assert 10 * sum(predictions[index] for index in chunk) <= limit
        if following:  # as many as fit
            assert 10 * sum(predictions[index] for index in (*chunk, following[0])) > limit


def test_passes_without_gradients_have_what_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm("gpt2")
    found = PreparedExamples(lm.engine, requests_of(lm, limit=9))
    passes: list[tuple[int, ...]] = []
    run = lm.engine.hidden
    monkeypatch.setattr(
        lm.engine, "hidden", lambda batch, layer: (passes.append(batch.input_ids.shape), run(batch, layer))[1]
    )
    monkeypatch.setattr(prepared, "ROW_WIDTH", 64)
    for limit, fewest, most in ((1e9, 1, 2), (130.0, 3, 9)):
        passes.clear()
        found.bound(Footprint(1.0, 0.0, 0.0), limit)
        with HiddenStates(10**9) as hidden:
            found.cache(0, hidden)
            assert len(hidden) == 9
        assert fewest <= len(passes) <= most and all(rows == 1 or rows * columns <= limit for rows, columns in passes)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "phi", "gemma3_text", "falcon"])
@pytest.mark.parametrize("cached", [False, True])
def test_an_example_too_large_is_computed_again_and_gives_the_same_gradient(
    architecture: str, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[None] = []
    monkeypatch.setattr(prepared, "trim", lambda: given_back.append(None))
    lm = make_lm(architecture)
    lm.model.requires_grad_(False)
    found = PreparedExamples(lm.engine, requests_of(lm, limit=1))
    vectors = {layer: torch.zeros(32, dtype=torch.float64, requires_grad=True) for layer in (0, 2)}

    def gradients() -> tuple[list[Tensor], int]:
        kept = 0

        def keep(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            (part,) = found.loglikelihoods([0])
        return list(torch.autograd.grad(part.sum(), list(vectors.values()))), kept

    injections = {layer: StaticInjection(vector) for layer, vector in vectors.items()}
    with HiddenStates(10**9) as hidden:
        if cached:
            found.cache(0, hidden)
        with training_injections(lm.engine.layers, injections):
            plain, whole = gradients()
            assert not given_back
            found.bound(footprint(lm.engine, 0), 0.0)
            again, little = gradients()
            assert len(given_back) == 1
    assert_equal(again, plain)
    assert float(plain[0].abs().max()) > 0
    assert little < 0.7 * whole  # the last of the three layers is kept
    assert all("forward" not in vars(module) for module in lm.engine.layers)
