"""How a model answers training or development examples, under one or several variants, in one pass.

Knows examples and a loaded model. The results of test documents come from `evaluation.py`, by lm-eval's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from aft_harness.engine.steering import Steering
from aft_harness.harness.examples import Example, graded
from aft_harness.harness.model import SteeredHFLM
from aft_harness.training.recipe import ChoiceNorm

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Answer:
    """The answer to one example.

    Attributes:
        loss: Cross-entropy of the softmax over the choices' loglikelihoods; of a target text, per token.
        right: Whether the likeliest choice is a right one; None where there are no choices.
    """

    loss: float
    right: bool | None


def answers(
    lm: SteeredHFLM,
    examples: Sequence[Example],
    variants: Sequence[Steering | None] = (None,),
    choice_norm: ChoiceNorm = "none",
    on_progress: OnProgress = lambda done, total: None,
) -> list[list[Answer]]:
    """Answers every example under every variant.

    Args:
        lm: The model.
        examples: What to answer; not empty.
        variants: From `SteeredHFLM.steering_for`.
        choice_norm: See `examples.choice_lengths`.
        on_progress: Told how many requests are scored, of how many.

    Returns:
        By variant, by example.
    """
    requests = [request for example in examples for request in example.requests]
    done = 0

    def scored(members: Sequence[int], results: object) -> None:
        nonlocal done
        done += len(members)
        on_progress(done, len(requests))

    found = []
    for results in lm.score_variants(requests, variants, on_scored=scored):
        sums = iter(score for score, _ in results)
        found.append([_answer(example, [next(sums) for _ in example.requests], choice_norm) for example in examples])
    return found


def _answer(example: Example, loglikelihoods: Sequence[float], choice_norm: ChoiceNorm) -> Answer:
    own = torch.tensor(loglikelihoods, dtype=torch.float64)
    if len(own) == 1:
        return Answer(-float(own[0]) / len(example.requests[0].continuation), None)
    loss, right = graded(example, own, choice_norm)
    return Answer(float(loss), right)
