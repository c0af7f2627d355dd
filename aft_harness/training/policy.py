"""Policy gradient: what is minimised so that texts with a higher reward become likelier.

Knows rewards and loglikelihoods. Knows nothing of models and texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def is_informative(rewards: Sequence[float]) -> bool:
    """Whether the texts of a document differ in what they are worth: always right and never right teach nothing."""
    return len(set(rewards)) > 1


def leave_one_out(rewards: Tensor) -> Tensor:
    """Each reward minus the mean of the others, [texts].

    The baseline of a text does not depend on that text, so that the gradient stays unbiased: W. Kool, H. van Hoof and
    M. Welling, Buy 4 REINFORCE Samples, Get a Baseline for Free, 2019.

    Args:
        rewards: Of the texts of one document, at least two.
    """
    count = len(rewards)
    return (rewards - rewards.mean()) * (count / (count - 1))


def policy_loss(rewards: Tensor, loglikelihoods: Tensor, reference: Tensor, kl: float) -> Tensor:
    """The loss of one document, whose gradient is that of -(expected reward - kl * KL(policy || reference)).

    The divergence is part of the reward: kl times the log ratio of a text is taken off, as in A. Ahmadian et al., Back
    to Basics: Revisiting REINFORCE Style Optimization, 2024, arXiv 2402.14740.

    Args:
        rewards: Of texts that were drawn from the policy, [texts].
        loglikelihoods: Of the texts under the policy, summed over tokens, [texts]; differentiable.
        reference: Those under the unsteered model.
        kl: Weight of the divergence.
    """
    given = loglikelihoods.detach()
    advantages = leave_one_out(rewards.to(given) - kl * (given - reference.to(given)))
    return -(advantages * loglikelihoods).mean()


def rejection_loss(loglikelihoods: Tensor, lengths: Sequence[int]) -> Tensor:
    """The loss of one document: cross-entropy a token, mean over its right texts.

    Args:
        loglikelihoods: Of the texts, summed over tokens, [texts]; differentiable.
        lengths: Their tokens.
    """
    return -(loglikelihoods / torch.tensor(lengths, device=loglikelihoods.device)).mean()
