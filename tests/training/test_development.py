"""How variants do on development examples, and that this is another measure than what training minimises."""

from __future__ import annotations

import pytest
import torch
from training_cases import examples, make_lm, plain, plain_loglikelihood, plain_loss

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.variant import BASELINE, Variant
from aft_harness.engine.steering import Steering
from aft_harness.errors import TrainingError
from aft_harness.studies.sweep import best_layer
from aft_harness.training.development import outcomes, ranking_scores
from aft_harness.training.objective import RANKING_LOSS, TRAINING_OBJECTIVE, TaskObjective, ranking_objectives
from aft_harness.training.train import train

BOOSTER = Booster.static({1: torch.linspace(-1, 1, 32)})
VARIANTS = [BASELINE, Variant("a", BOOSTER), Variant("a at 3", BOOSTER, 3.0)]


def test_outcomes_of_every_variant_equal_plain_ones() -> None:
    lm = make_lm()
    task = examples(lm, limit=5)
    seen: list[tuple[int, int]] = []
    objectives = {"toy_choice": TaskObjective("both", "characters", 2.0)}
    found = outcomes(lm, task.train, objectives, VARIANTS, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (15, 15)
    for variant, results in zip(VARIANTS, found, strict=True):
        with Steering(lm.model, BOOSTER, variant.strength if variant.booster else 0.0), torch.no_grad():
            for example, outcome in zip(task.train, results, strict=True):
                expected = plain_loss(lm.model, example, "both", "characters", 2.0).item()
                assert float(outcome.loss) == pytest.approx(expected, rel=1e-5)
                scores = [
                    float(plain_loglikelihood(lm.model, request)) / len(choice)
                    for request, choice in zip(example.requests, example.choices, strict=True)
                ]
                assert outcome.right is (scores.index(max(scores)) in example.gold)


def test_ranking_scores_are_mean_cross_entropies_at_temperature_one() -> None:
    lm = make_lm()
    tasks = [examples(lm, limit=4, weight=5.0), examples(lm, "toy_text", limit=3)]
    every = [*tasks[0].train, *tasks[1].train]
    found = ranking_scores(lm, VARIANTS, tasks, every, "characters")
    assert [score.measure for score in found] == [RANKING_LOSS] * 3
    for variant, score in zip(VARIANTS, found, strict=True):
        with Steering(lm.model, BOOSTER, variant.strength if variant.booster else 0.0), torch.no_grad():
            losses = [plain_loss(lm.model, example, "choice", "characters").item() for example in tasks[0].train]
            losses += [plain_loss(lm.model, example, "answer", "none").item() for example in tasks[1].train]
        # Weights belong to the training: here every document counts once.
        assert score.loss == pytest.approx(sum(losses) / 7, rel=1e-5)
        assert score.n == 7 and score.accuracy in {right / 4 for right in range(5)}


def test_nothing_is_ranked_without_examples() -> None:
    with pytest.raises(TrainingError, match="without development documents"):
        ranking_scores(make_lm(), [BASELINE], [], [])


def test_a_training_records_its_objective_and_a_layer_sweep_the_ranking_loss() -> None:
    lm = make_lm()
    task = examples(lm, limit=6, dev_docs=4)
    settings = plain(epochs=1, objective="both", temperature=2.0)
    trained, scores = best_layer(lm, [task], settings, [1, 2])
    provenance = trained.booster.provenance
    assert provenance.before is not None and provenance.after is not None and provenance.layer_sweep is not None
    assert {provenance.before.measure, provenance.after.measure} == {TRAINING_OBJECTIVE}
    assert {score.measure for score in provenance.layer_sweep.values()} == {RANKING_LOSS}
    assert provenance.layer_sweep == {str(layer): score for layer, score in scores.items()}
    (layer,) = trained.booster.layers
    kept = provenance.layer_sweep[str(layer)]
    with Steering(lm.model, trained.booster), torch.no_grad():
        objective = [plain_loss(lm.model, example, "both", "none", 2.0).item() for example in task.development]
        ranking = [plain_loss(lm.model, example, "choice", "none").item() for example in task.development]
    count = len(task.development)
    assert provenance.after.loss == pytest.approx(sum(objective) / count, rel=1e-5)
    assert kept.loss == pytest.approx(sum(ranking) / count, rel=1e-5)
    assert provenance.after.loss != pytest.approx(kept.loss, rel=1e-2)
    assert provenance.after.accuracy == kept.accuracy


def test_the_two_measures_agree_where_they_mean_the_same() -> None:
    lm = make_lm()
    task = examples(lm, limit=6, dev_docs=4)
    trained = train(lm, [task], plain(epochs=1, objective="choice"))
    (score,) = ranking_scores(lm, [Variant("a", trained.booster)], [task], task.development)
    assert score.loss == pytest.approx(trained.after.loss, rel=1e-5)
    assert (score.accuracy, score.n) == (trained.after.accuracy, trained.after.n)
    assert ranking_objectives([task]) == {"toy_choice": TaskObjective("choice", "none", 1.0)}
