"""The term that holds a model to itself: its value and gradient by torch, and what it does to training."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from training_cases import examples, make_lm, plain

from aft_harness.boosters.booster import Booster
from aft_harness.engine.scoring import Request
from aft_harness.engine.steering import Steering
from aft_harness.errors import TrainingError
from aft_harness.harness.model import SteeredHFLM
from aft_harness.training.hidden_states import HiddenStates
from aft_harness.training.identity import training_identity
from aft_harness.training.keeping import TEXTS_A_STEP, Keeping, cross_entropy, sampled_texts, texts_of
from aft_harness.training.train import train

LIMIT = 10**9


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 0.02)]
)
def test_cross_entropy_and_its_gradient_are_those_of_torch(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    wanted = torch.randn(7, 301, dtype=torch.float64).softmax(-1)
    ours = (3 * torch.randn(7, 301)).to(dtype).requires_grad_()
    theirs = ours.detach().double().requires_grad_()
    weights = torch.rand(7, dtype=torch.float64)
    found = cross_entropy(ours, wanted)
    expected = F.cross_entropy(theirs, wanted, reduction="none")
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    (found * weights.to(found.dtype)).sum().backward()
    (expected * weights).sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=tolerance, atol=tolerance)


def log_probabilities(lm: SteeredHFLM, text: Request) -> Tensor:
    tokens = torch.tensor([[*text.context, *text.continuation]])
    logits: Tensor = lm.model(tokens[:, :-1]).logits[0]
    return logits.log_softmax(-1)


def by_hand(lm: SteeredHFLM, texts: list[Request], steering: Steering) -> Tensor:
    divergences = []
    for text in texts:
        with torch.no_grad():
            before = log_probabilities(lm, text)
        with steering:
            after = log_probabilities(lm, text)
        divergences.append(F.kl_div(after, before, log_target=True, reduction="sum") / len(text.continuation))
    return torch.stack(divergences).mean()


STRONG = Booster.static({1: torch.linspace(-1, 1, 32)})
TEXTS = ["The child opens the door and walks to school. " * 4, "Plants need water and light to live and grow."]


@pytest.mark.parametrize(
    ("architecture", "packing", "cached"), [("llama", "on", 1), ("gpt2", "off", 1), ("llama", "on", 3)]
)
def test_the_divergence_is_a_mean_over_tokens_and_zero_without_steering(
    architecture: str, packing: str, cached: int
) -> None:
    lm = make_lm(architecture, packing=packing)
    texts = texts_of(lm, TEXTS, seed=0, tokens=24)
    every = list(range(len(texts)))
    steering = Steering(lm.model, Booster.static({cached: torch.linspace(-1, 1, 32)}))
    assert len(texts) > 3
    with Keeping(lm.engine, texts, HiddenStates(LIMIT)) as keeping, torch.no_grad():
        keeping.cache(cached)
        assert keeping.divergence(every).item() == pytest.approx(0.0, abs=1e-5)
        for chosen in ([0], [2, 0], every):
            expected = by_hand(lm, [texts[index] for index in chosen], steering).item()
            with steering:
                assert keeping.divergence(chosen).item() == pytest.approx(expected, rel=1e-3) and expected > 0.01


def test_predictions_beyond_the_limit_are_the_same() -> None:
    lm = make_lm(double=False)
    texts = texts_of(lm, TEXTS, seed=0, tokens=24)
    found = []
    for limit in (LIMIT, 0):
        with Keeping(lm.engine, texts, HiddenStates(limit)) as keeping, torch.no_grad():
            keeping.cache(0)
            with Steering(lm.model, STRONG):
                found.append(keeping.divergence([1, 0]).item())
    assert found[0] == found[1]


def test_samples_are_the_models_own_whatever_its_generation_defaults() -> None:
    lm = make_lm(double=False)
    state = torch.random.get_rng_state()
    texts = sampled_texts(lm, seed=3, count=64, tokens=12)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {(text.context, len(text.continuation)) for text in texts} == {((lm.prefix_token_id,), 12)}
    assert sampled_texts(lm, seed=3, count=64, tokens=12) == texts != sampled_texts(lm, seed=4, count=64, tokens=12)
    config: Any = lm.model.generation_config
    config.top_k, config.repetition_penalty, config.temperature = 1, 5.0, 0.01
    assert sampled_texts(lm, seed=3, count=64, tokens=12) == texts
    # First tokens come by the model's own probabilities: as many likely ones as those say.
    first = log_probabilities(lm, texts[0])[0].exp()
    likely = first.argsort(descending=True)[: len(first) // 4]
    share = sum(text.continuation[0] in likely for text in sampled_texts(lm, seed=0, count=2000, tokens=1)) / 2000
    assert share == pytest.approx(first[likely].sum().item(), abs=0.04)


def test_given_texts_are_cut_into_pieces_and_drawn_by_seed() -> None:
    lm = make_lm(double=False)
    pieces = texts_of(lm, TEXTS, seed=0, tokens=10)
    assert all(8 <= len(piece.continuation) <= 10 and piece.context == (lm.prefix_token_id,) for piece in pieces)
    known = [tuple(lm.tok_encode(text, add_special_tokens=False)) for text in TEXTS]
    possible = {text[start : start + 10] for text in known for start in range(0, len(text), 10)}
    assert {piece.continuation for piece in pieces} <= possible
    assert len(texts_of(lm, TEXTS, seed=0, count=2, tokens=10)) == 2
    assert texts_of(lm, TEXTS, seed=1, tokens=10) != pieces
    with pytest.raises(TrainingError, match="the texts to keep have no piece of 8 tokens or more"):
        texts_of(lm, ["Short."], seed=0)


def test_texts_take_turns() -> None:
    lm = make_lm(double=False)
    with Keeping(lm.engine, texts_of(lm, TEXTS, seed=0, tokens=10), HiddenStates(LIMIT)) as keeping:
        count = len(keeping)
        seen = Counter(text for step in range(count) for text in keeping.texts_of_step(step, 5))
        assert set(seen.values()) == {TEXTS_A_STEP} and len(seen) == count
        assert keeping.texts_of_step(0, 5) != keeping.texts_of_step(1, 5)
        orders = [[keeping.texts_of_step(step, seed) for step in range(count)] for seed in (5, 6, 5)]
        assert orders[0] == orders[2] != orders[1]


def test_what_is_kept_moves_less() -> None:
    lm = make_lm(double=False)
    task = examples(lm, limit=8)
    moved = {}
    for keep in (0.0, 1e-9, 1000.0):
        result = train(lm, [task], plain(keep=keep, lr=0.05), keep_texts=TEXTS if keep else None)
        moved[keep] = result
    with Keeping(lm.engine, texts_of(lm, TEXTS, seed=0), HiddenStates(LIMIT)) as keeping, torch.no_grad():
        keeping.cache(0)
        divergence = {}
        for keep, result in moved.items():
            with Steering(lm.model, result.booster):
                divergence[keep] = keeping.divergence(range(len(keeping))).item()
    assert divergence[1000.0] < 0.5 * divergence[0.0]
    assert divergence[1e-9] == pytest.approx(divergence[0.0], rel=0.01)
    assert moved[0.0].losses["divergence"].isna().all()
    recorded = moved[1000.0].losses["divergence"]
    assert recorded.iloc[0] == pytest.approx(0.0, abs=1e-5) and (recorded.iloc[1:] > 0).all()
    hyperparameters = moved[1000.0].booster.provenance.hyperparameters
    assert hyperparameters is not None and hyperparameters["keep"] == 1000.0


def test_training_is_another_with_another_weight_or_other_texts() -> None:
    lm = make_lm(double=False)
    task = examples(lm, limit=4)
    asked: list[tuple[float, list[str] | None]] = [
        (0.0, None),
        (1.0, None),
        (2.0, None),
        (1.0, TEXTS),
        (1.0, TEXTS[:1]),
    ]
    assert len({training_identity(lm, [task], plain(keep=keep), None, texts) for keep, texts in asked}) == len(asked)


@pytest.mark.parametrize("keep", [-1.0, float("nan"), float("inf")])
def test_weights_that_mean_nothing_are_refused(keep: float) -> None:
    with pytest.raises(TrainingError, match=r"keep .* must be zero or a positive number"):
        plain(keep=keep)


def test_texts_without_a_weight_are_refused() -> None:
    lm = make_lm(double=False)
    with pytest.raises(TrainingError, match="texts to keep need a weight; set keep"):
        train(lm, [examples(lm, limit=4)], plain(), keep_texts=TEXTS)
