"""At which strengths to mix finished boosters: those with the lowest ranking loss on development documents.

Knows boosters, examples and a loaded model. A mixture's delta is linear in its strengths, so that the loss has a
gradient with respect to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.injections import Injection
from aft_harness.boosters.provenance import Score
from aft_harness.engine.decoder import hidden_size
from aft_harness.engine.steering import training_injections
from aft_harness.errors import TrainingError
from aft_harness.harness.examples import Example, TaskExamples
from aft_harness.harness.model import SteeredHFLM
from aft_harness.progress import OnProgress, ignore
from aft_harness.training.development import unseen_examples
from aft_harness.training.hidden_states import HiddenStates
from aft_harness.training.objective import RANKING_LOSS, Outcome, mean_score, ranking_objectives
from aft_harness.training.prepared import PreparedExamples

STRONGEST = 2.0
"""Upper bound of a fitted strength; the lower one is 0."""

MOST_STEPS = 20
"""Iterations of the optimiser at most."""

_CACHE = 2 * 2**30
"""Bytes of hidden states kept in memory."""


@dataclass(frozen=True)
class Fitted:
    """Strengths of a mixture, and how it does on the development documents that chose them.

    Attributes:
        strengths: One a booster, in the order in which they were given.
        unchanged: Score of the unchanged model.
        alone: Scores of each booster by itself, at strength 1.
        mixed: Score of the mixture.
    """

    strengths: tuple[float, ...]
    unchanged: Score
    alone: tuple[Score, ...]
    mixed: Score


def fit_strengths(
    lm: SteeredHFLM,
    boosters: Sequence[Booster],
    tasks: Sequence[TaskExamples],
    on_progress: OnProgress = ignore,
) -> Fitted:
    """Finds the strengths at which a mixture of boosters has the lowest ranking loss.

    The search (L-BFGS-B: Byrd, Lu, Nocedal & Zhu, SIAM J. Sci. Comput. 16, 1995) starts from equal strengths that add
    up to 1 and stays between 0 and `STRONGEST`.

    Args:
        lm: The model, without a booster.
        boosters: What is mixed; at least one.
        tasks: Tasks whose development examples are used; those that a booster was trained on do not count.
        on_progress: Called after each pass over the examples with how many were made, and of how many at most.

    Raises:
        TrainingError: No development documents are left, or a booster's training documents are not known.
        BoosterError: Boosters that do not fit the model.
    """
    examples = unseen_examples(boosters, tasks)
    if not examples:
        raise TrainingError("there are no development documents that none of the boosters was trained on")
    for booster in boosters:
        booster.check_fits(hidden_size(lm.model), len(lm.engine.layers), type(lm.model).__name__)
    count = len(boosters)
    with HiddenStates(_CACHE) as hidden, lm.engine.differentiated():
        loss = _MixtureLoss(lm, boosters, examples, tasks, hidden)
        passes = 0

        def evaluated(strengths: Any) -> tuple[float, Any]:
            nonlocal passes
            passes += 1
            on_progress(min(passes, 2 * MOST_STEPS), 2 * MOST_STEPS)
            return loss.value_and_gradient(strengths)

        found = minimize(
            evaluated,
            np.full(count, 1 / count),
            jac=True,
            method="L-BFGS-B",
            bounds=[(0.0, STRONGEST)] * count,
            options={"maxiter": MOST_STEPS, "maxfun": 2 * MOST_STEPS, "ftol": 1e-5},
        )
        strengths = tuple(round(float(strength), 3) for strength in found.x)  # what a reference can spell
        alone = tuple(loss.score(row) for row in np.eye(count))
        result = Fitted(strengths, loss.score(np.zeros(count)), alone, loss.score(strengths))
        on_progress(2 * MOST_STEPS, 2 * MOST_STEPS)
    return result


class _MixtureLoss:
    """The mean ranking loss of examples as a function of the strengths of a mixture."""

    def __init__(
        self,
        lm: SteeredHFLM,
        boosters: Sequence[Booster],
        examples: Sequence[Example],
        tasks: Sequence[TaskExamples],
        hidden: HiddenStates,
    ) -> None:
        self._lm, self._boosters, self._examples = lm, boosters, examples
        self._objectives = ranking_objectives(tasks)
        self._prepared = PreparedExamples(
            lm.engine, [self._objectives[example.task].requests(example) for example in examples]
        )
        self._prepared.cache(min(layer for booster in boosters for layer in booster.layers), hidden)

    def value_and_gradient(self, strengths: Any) -> tuple[float, Any]:
        """The loss at some strengths, and its gradient with respect to them."""
        weights = torch.tensor(strengths, dtype=torch.float64, requires_grad=True)
        total = 0.0
        with training_injections(self._lm.engine.layers, self._mixed(weights)):
            for chunk in self._prepared.chunks(range(len(self._examples))):
                loss = torch.stack([outcome.loss for outcome in self._outcomes(chunk)]).sum() / len(self._examples)
                loss.backward(retain_graph=True)  # the mixture is one graph, whatever the number of chunks
                total += loss.item()
        assert weights.grad is not None
        return total, weights.grad.numpy()

    @torch.no_grad()
    def score(self, strengths: Any) -> Score:
        """Loss and accuracy at some strengths."""
        with training_injections(self._lm.engine.layers, self._mixed(torch.tensor(strengths, dtype=torch.float64))):
            outcomes = [
                outcome
                for chunk in self._prepared.chunks(range(len(self._examples)))
                for outcome in self._outcomes(chunk)
            ]
        return mean_score(outcomes, [1.0] * len(outcomes), RANKING_LOSS)

    def _outcomes(self, chunk: Sequence[int]) -> list[Outcome]:
        examples = [self._examples[index] for index in chunk]
        pairs = zip(examples, self._prepared.loglikelihoods(chunk), strict=True)
        return [self._objectives[example.task].outcome(example, part) for example, part in pairs]

    def _mixed(self, weights: Tensor) -> Mapping[int, Injection]:
        """The injections of the mixture by layer, differentiable with respect to the weights."""
        mixed: dict[int, Injection] = {}
        for weight, booster in zip(weights, self._boosters, strict=True):
            for layer, injection in booster.injections.items():
                scaled = injection.with_tensors(
                    {
                        name: tensor.to(self._lm.device) * weight.to(self._lm.device, tensor.dtype)
                        if name in injection.linear
                        else tensor.to(self._lm.device)
                        for name, tensor in injection.tensors.items()
                    }
                )
                mixed[layer] = mixed[layer].plus(scaled) if layer in mixed else scaled
        return mixed
