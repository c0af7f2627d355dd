"""The gradient of a policy over nine texts, against its exact expectation: every draw is enumerated."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from aft_harness.training.policy import is_informative, leave_one_out, policy_loss, rejection_loss

TEXTS = list(itertools.product(range(3), repeat=2))
REWARDS = torch.tensor([float(first == 0) + 0.5 * (second == 2) for first, second in TEXTS], dtype=torch.float64)
REFERENCE = torch.tensor([[0.3, -0.2, 0.1], [0.0, 0.4, -0.5]], dtype=torch.float64)


def loglikelihoods(logits: Tensor) -> Tensor:
    """Of every text of two tokens, each drawn from a distribution of its own."""
    table = logits.log_softmax(-1)
    return torch.stack([table[0, first] + table[1, second] for first, second in TEXTS])


@pytest.mark.parametrize("kl", [0.0, 0.3])
@pytest.mark.parametrize("count", [2, 3])
def test_the_expected_gradient_is_that_of_the_expected_reward(kl: float, count: int) -> None:
    logits = torch.tensor([[0.5, -1.0, 0.2], [0.1, 0.9, 0.0]], dtype=torch.float64, requires_grad=True)
    reference = loglikelihoods(REFERENCE)
    scores = loglikelihoods(logits)
    exact = -(scores.exp() * (REWARDS - kl * (scores - reference))).sum()
    (wanted,) = torch.autograd.grad(exact, logits)
    found = torch.zeros_like(wanted)
    probabilities = loglikelihoods(logits).exp().detach()
    for drawn in itertools.product(range(len(TEXTS)), repeat=count):
        places = torch.tensor(drawn)
        loss = policy_loss(REWARDS[places], loglikelihoods(logits)[places], reference[places], kl)
        found += probabilities[places].prod() * torch.autograd.grad(loss, logits)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_the_baseline_is_the_mean_of_the_others() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 3.0])
    others = [torch.cat([rewards[:place], rewards[place + 1 :]]).mean() for place in range(4)]
    torch.testing.assert_close(leave_one_out(rewards), rewards - torch.stack(others))


def test_texts_that_are_all_alike_teach_nothing() -> None:
    assert not is_informative([1.0, 1.0]) and not is_informative([0.0, 0.0])
    assert is_informative([0.0, 1.0, 0.0])


def test_every_right_text_counts_alike_whatever_its_length() -> None:
    scores = torch.tensor([-4.0, -1.0], requires_grad=True)
    loss = rejection_loss(scores, [4, 2])
    assert loss.item() == pytest.approx(0.75)
    loss.backward()
    assert scores.grad is not None and scores.grad.tolist() == [-0.125, -0.25]
