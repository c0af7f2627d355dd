"""One pass over the examples: order, steps, weights, and what is reported."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor
from training_cases import plain

from aft_harness.errors import TrainingError
from aft_harness.progress import TrainingProgress
from aft_harness.training.loop import EpochLosses, run_epoch
from aft_harness.training.optimiser import scheduler
from aft_harness.training.recipe import Settings


class Weighted:
    """An example that is only a weight."""

    def __init__(self, weight: float) -> None:
        self.weight = weight


class Parabolas:
    """An objective of which everything is known: the loss of example `i` is `(x - i) ** 2`."""

    def __init__(self, weights: Sequence[float], a_pass: int = 100) -> None:
        self.examples = [Weighted(weight) for weight in weights]
        self.x = torch.zeros((), dtype=torch.float64, requires_grad=True)
        self.prepared = self
        self.a_pass = a_pass
        self.seen: list[int] = []

    def chunks(self, indices: Sequence[int]) -> list[Sequence[int]]:
        return [indices[start : start + self.a_pass] for start in range(0, len(indices), self.a_pass)]

    def losses(self, indices: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        self.seen += indices
        yield {index: (self.x - index) ** 2 for index in indices}


def run(
    objective: Parabolas, examples: Sequence[int], settings: Settings, epoch: int = 1, finite: bool = True
) -> tuple[EpochLosses, list[TrainingProgress]]:
    optimiser = torch.optim.SGD([objective.x], lr=settings.lr)
    schedule = scheduler(optimiser, "constant", 100)
    seen: list[TrainingProgress] = []
    losses = EpochLosses()
    run_epoch(objective, examples, settings, schedule, epoch, losses, lambda: finite, seen.append)  # type: ignore[arg-type]
    return losses, seen


def by_hand(order: list[int], weights: Sequence[float], size: int, lr: float) -> tuple[list[float], float]:
    """Losses of the steps of gradient descent, and where it ends."""
    x, losses = 0.0, []
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        total = sum(weights[index] for index in batch)
        losses.append(sum(weights[index] * (x - index) ** 2 for index in batch) / total)
        x -= lr * sum(weights[index] * 2 * (x - index) for index in batch) / total
    return losses, x


@pytest.mark.parametrize("a_pass", [100, 2, 1])
def test_steps_are_those_of_gradient_descent_on_weighted_means(a_pass: int) -> None:
    weights = [1.0, 3.0, 0.5, 1.0, 2.0, 1.0, 1.0]
    objective = Parabolas(weights, a_pass)
    losses, seen = run(objective, range(7), plain(batch_size=3, lr=0.1, epochs=2))
    assert sorted(objective.seen) == list(range(7))
    steps, end = by_hand(objective.seen, weights, 3, 0.1)
    assert losses.steps == pytest.approx(steps) and objective.x.item() == pytest.approx(end)
    sizes = [sum(weights[index] for index in objective.seen[start : start + 3]) for start in (0, 3, 6)]
    mean = sum(loss * size for loss, size in zip(steps, sizes, strict=True)) / sum(sizes)
    assert losses.mean == pytest.approx(mean)
    assert [(progress.step, progress.steps, progress.epoch) for progress in seen] == [(1, 6, 1), (2, 6, 1), (3, 6, 1)]
    assert seen[0].loss == pytest.approx(steps[0]) and seen[-1].loss == pytest.approx(mean)


def test_the_order_follows_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        objective = Parabolas([1.0] * 20)
        _, seen = run(objective, range(20), plain(seed=seed), epoch)
        assert seen[-1].step == epoch * 3
        return objective.seen

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (1, 2)]
    assert order(0, 1) == orders[0]
    assert len({tuple(each) for each in orders}) == 4 and all(sorted(each) == list(range(20)) for each in orders)


def test_steps_that_were_taken_are_not_taken_again() -> None:
    whole, resumed = Parabolas([1.0] * 7), Parabolas([1.0] * 7)
    settings = plain(batch_size=3)
    losses, _ = run(whole, range(7), settings)
    schedule = scheduler(torch.optim.SGD([resumed.x], lr=settings.lr), "constant", 100)
    found = EpochLosses(losses.steps[:2], losses.weights[:2])
    seen: list[TrainingProgress] = []
    run_epoch(resumed, range(7), settings, schedule, 1, found, lambda: True, seen.append)  # type: ignore[arg-type]
    assert resumed.seen == whole.seen[6:] and [progress.step for progress in seen] == [3]
    assert found.steps[:2] == losses.steps[:2] and found.weights == losses.weights


def test_only_the_examples_that_are_named_are_learned_from() -> None:
    objective = Parabolas([1.0] * 9)
    run(objective, [7, 2, 5], plain())
    assert sorted(objective.seen) == [2, 5, 7]


def test_what_is_not_finite_stops_before_the_step() -> None:
    with pytest.raises(TrainingError, match=r"the loss became nan in epoch 3; lower the learning rate \(0\.01\)"):
        run(Parabolas([math.nan, 1.0]), range(2), plain(), 3)
    objective = Parabolas([1.0] * 3)
    before: Tensor = objective.x.detach().clone()
    with pytest.raises(TrainingError, match="in epoch 1"):
        run(objective, range(3), plain(), finite=False)
    assert torch.equal(objective.x.detach(), before)
