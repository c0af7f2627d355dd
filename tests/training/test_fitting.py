"""Strengths of mixtures: where the loss is lowest, by an exhaustive search."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from training_cases import examples, make_lm, plain, plain_loss

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.injections import ContextualInjection
from aft_harness.boosters.mixing import mix
from aft_harness.engine.steering import Steering
from aft_harness.errors import BoosterError, TrainingError
from aft_harness.harness.examples import TaskExamples
from aft_harness.harness.model import SteeredHFLM
from aft_harness.training.fitting import STRONGEST, Fitted, fit_strengths
from aft_harness.training.train import train


@pytest.fixture(scope="module")
def lm() -> SteeredHFLM:
    return make_lm()


@pytest.fixture(scope="module")
def task(lm: SteeredHFLM) -> TaskExamples:
    return examples(lm, limit=1, dev_docs=8)


def loss(lm: SteeredHFLM, task: TaskExamples, booster: Booster) -> float:
    with Steering(lm.model, booster), torch.no_grad():
        losses = [plain_loss(lm.model, example, "choice", "none").item() for example in task.development]
    return sum(losses) / len(losses)


def direction(lm: SteeredHFLM, task: TaskExamples, layer: int, seed: int) -> Booster:
    """A random vector, on the side that lowers the loss."""
    vector = 0.3 * torch.randn(32, generator=torch.Generator().manual_seed(seed))
    booster = Booster.static({layer: vector})
    return booster if loss(lm, task, booster) < loss(lm, task, booster.scaled(-1)) else booster.scaled(-1)


def fitted(lm: SteeredHFLM, task: TaskExamples, *boosters: Booster) -> Fitted:
    return fit_strengths(lm, boosters, [task])


def test_no_mixture_of_a_grid_is_better(lm: SteeredHFLM, task: TaskExamples) -> None:
    first, second = direction(lm, task, 1, 0), direction(lm, task, 2, 1)
    found = fitted(lm, task, first, second)
    grid = [0.0, 0.25, 0.5, 1.0, 1.5, 2.0]
    losses = {(a, b): loss(lm, task, mix([(first, a), (second, b)])) for a in grid for b in grid}
    mixed = mix([(first, found.strengths[0]), (second, found.strengths[1])])
    assert found.mixed.loss == pytest.approx(loss(lm, task, mixed), rel=1e-4)
    assert found.mixed.loss <= min(losses.values()) + 1e-4
    assert found.unchanged.loss == pytest.approx(losses[0.0, 0.0], rel=1e-5)
    assert [score.loss for score in found.alone] == pytest.approx([losses[1.0, 0.0], losses[0.0, 1.0]], rel=1e-5)
    assert found.mixed.n == 8 and found.mixed.loss < found.unchanged.loss


def test_what_harms_gets_no_strength_and_none_exceeds_the_bound(lm: SteeredHFLM, task: TaskExamples) -> None:
    learned = train(lm, [replace(task, train=task.development)], plain(epochs=8, lr=2e-2, objective="choice")).booster
    good = Booster.of(learned.injections).scaled(0.3)  # without the list of its documents
    assert fitted(lm, task, good.scaled(-1)).strengths == (0.0,)
    assert fitted(lm, task, good).strengths == (STRONGEST,)


def test_boosters_of_one_layer_and_of_context_are_mixed_as_ever(lm: SteeredHFLM, task: TaskExamples) -> None:
    fresh = ContextualInjection.fresh(32, 2, seed=0)
    generator = torch.Generator().manual_seed(3)
    tensors = {name: 0.2 * torch.randn(tensor.shape, generator=generator) for name, tensor in fresh.tensors.items()}
    boosters = [Booster.of({1: fresh.with_tensors(tensors)}), Booster.of({1: fresh.with_tensors(tensors).scaled(0.5)})]
    found = fitted(lm, task, *boosters)
    mixed = mix(list(zip(boosters, found.strengths, strict=True)))
    assert found.mixed.loss == pytest.approx(loss(lm, task, mixed), rel=1e-4)


def test_documents_that_a_booster_learned_do_not_count(lm: SteeredHFLM, task: TaskExamples) -> None:
    from aft_harness.boosters.provenance import Documents

    def learned(count: int) -> Booster:
        documents = Documents.learned(example.document for example in task.development[:count])
        return Booster.static({1: torch.ones(32)}, {"documents": documents})

    assert fitted(lm, task, learned(3), learned(0)).mixed.n == 5
    with pytest.raises(TrainingError, match="no development documents that none of the boosters was trained on"):
        fitted(lm, task, learned(8))


def test_boosters_of_another_model_are_refused(lm: SteeredHFLM, task: TaskExamples) -> None:
    with pytest.raises(BoosterError, match="hidden size"):
        fitted(lm, task, Booster.static({1: torch.ones(16)}))


def test_progress_ends_at_the_end(lm: SteeredHFLM, task: TaskExamples) -> None:
    seen: list[Any] = []
    fit_strengths(lm, [direction(lm, task, 1, 0)], [task], lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] and sorted(seen) == seen
