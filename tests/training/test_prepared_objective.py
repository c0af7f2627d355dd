"""The objective of a training over its own examples: indices, temperatures and scores."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch
from training_cases import (
    examples,
    make_lm,
    plain,
    plain_loglikelihood,
    plain_loss,
    plain_mean_loss,
    plain_training,
    vectors_of,
)

from aft_harness.engine.footprint import footprint
from aft_harness.training.objective import TRAINING_OBJECTIVE
from aft_harness.training.prepared import PreparedExamples
from aft_harness.training.prepared_objective import PreparedObjective
from aft_harness.training.train import train


@pytest.mark.parametrize("norm", ["none", "characters"])
def test_the_temperature_is_the_typical_margin_of_the_unchanged_model(
    norm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aft_harness.training.prepared_objective.MEASURED", 7)
    lm = make_lm()
    task = examples(lm, limit=9)
    margins = []
    for example in task.train[:7]:
        scores = [plain_loglikelihood(lm.model, request).item() for request in example.requests]
        if norm == "characters":
            scores = [score / len(choice) for score, choice in zip(scores, example.choices, strict=True)]
        right = scores.pop(example.gold[0])
        margins.append(abs(right - max(scores)))
    expected = statistics.median(margins)
    settings = plain(layers=(1,), choice_norm=norm, temperature=None, lr=1e-2, epochs=2, batch_size=4)
    trained = train(lm, [task], settings)
    recorded = trained.booster.provenance.hyperparameters
    assert recorded is not None and recorded["temperatures"] == pytest.approx({task.task: expected})
    _, losses, vectors = plain_training(lm.model, task, replace(settings, temperature=expected), "both")
    assert trained.epoch_losses == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(vectors_of(trained), vectors, rtol=1e-3, atol=1e-5)


def test_each_task_has_its_own_temperature_measured_on_what_is_learned() -> None:
    lm = make_lm()
    tasks = [examples(lm, limit=4, dev_docs=3), examples(lm, "toy_blanks", limit=5), examples(lm, "toy_text", limit=2)]
    found = PreparedObjective(lm.engine, tasks, plain(temperature=None))
    for task in tasks[:2]:
        alone = PreparedObjective(lm.engine, [replace(task, development=[])], plain(temperature=None))
        assert found.temperatures[task.task] == pytest.approx(alone.temperatures[task.task], rel=1e-6)
    assert found.temperatures["toy_text"] == 1.0
    assert PreparedObjective(lm.engine, tasks, plain(temperature=2.0)).temperatures == dict.fromkeys(
        ("toy_choice", "toy_blanks", "toy_text"), 2.0
    )


def test_passes_are_bounded_before_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds: list[float] = []
    run = PreparedExamples.loglikelihoods

    def watched(self: PreparedExamples, indices: Any) -> Any:
        bounds.append(self.footprint.columns_without_gradient(64, 1e6))
        return run(self, indices)

    monkeypatch.setattr(PreparedExamples, "loglikelihoods", watched)
    lm = make_lm()
    PreparedObjective(lm.engine, [examples(lm, limit=4)], plain(temperature=None), lowest=1, limit=1e6)
    expected = footprint(lm.engine, 1).columns_without_gradient(64, 1e6)
    assert bounds and bounds[0] == pytest.approx(expected) and math.isfinite(expected)


def test_indices_name_the_examples_of_all_tasks() -> None:
    lm = make_lm()
    tasks = [examples(lm, limit=4, dev_docs=3), examples(lm, "toy_text", limit=2, dev_docs=1)]
    found = PreparedObjective(lm.engine, tasks, plain())
    assert [found.examples[index] for index in found.train] == [*tasks[0].train, *tasks[1].train]
    assert [found.examples[index] for index in found.development] == [*tasks[0].development, *tasks[1].development]
    assert sorted(found.train + found.development) == list(range(len(found.prepared)))
    outcomes = found.outcomes(found.train)
    expected = [("both", example) for example in tasks[0].train] + [("answer", example) for example in tasks[1].train]
    for outcome, (objective, example) in zip(outcomes, expected, strict=True):
        assert outcome.loss.item() == pytest.approx(plain_loss(lm.model, example, objective, "none").item(), rel=1e-6)


def test_an_example_that_is_there_twice_counts_twice() -> None:
    lm = make_lm()
    task = examples(lm, limit=3)
    first, second, third = task.train
    twice = replace(task, train=[first, second, first, replace(first), third])
    found = PreparedObjective(lm.engine, [twice], plain())
    order = (first, second, first, first, third)
    expected = [plain_loss(lm.model, example, "both", "none").item() for example in order]
    assert [float(outcome.loss) for outcome in found.outcomes(found.train)] == pytest.approx(expected, rel=1e-6)
    assert found.score(found.train).loss == pytest.approx(sum(expected) / 5, rel=1e-6)


def test_a_score_is_the_weighted_mean_and_says_what_of() -> None:
    lm = make_lm()
    tasks = [examples(lm, limit=4, weight=3.0), examples(lm, "toy_text", limit=2)]
    found = PreparedObjective(lm.engine, tasks, plain())
    score = found.score(found.train)
    means = plain_mean_loss(lm, tasks[0].train, "both"), plain_mean_loss(lm, tasks[1].train, "answer")
    assert score.loss == pytest.approx((means[0] * 4 * 3 + means[1] * 2) / (4 * 3 + 2), rel=1e-6)
    assert score.n == 6 and score.measure == TRAINING_OBJECTIVE
