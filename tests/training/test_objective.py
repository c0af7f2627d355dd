"""Objectives against their plain formulas, on loglikelihoods that are written down here."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from training_cases import PLAIN, plain

from aft_harness.boosters.provenance import Score
from aft_harness.engine.scoring import Request
from aft_harness.errors import TrainingError
from aft_harness.harness.examples import Example, TaskExamples
from aft_harness.training.objective import (
    PREFERENCE_TEMPERATURE,
    RANKING_LOSS,
    SMALLEST_TEMPERATURE,
    TRAINING_OBJECTIVE,
    Outcome,
    TaskObjective,
    choice_lengths,
    mean_score,
    ranking_objectives,
    training_objectives,
)
from aft_harness.training.recipe import PAIR_OBJECTIVE

CHOICES = ("é, no", "ab", "a longer one")
LENGTHS = {"none": [1, 1, 1], "characters": [5, 2, 12], "bytes": [6, 2, 12], "tokens": [4, 1, 3]}
SUMS = [-7.0, -1.5, -9.0]


def example(*gold: int, choices: tuple[str, ...] = CHOICES) -> Example:
    """A question whose choices have as many tokens as `LENGTHS` says."""
    requests = tuple(Request((3, 4), (5,) * count) for count in LENGTHS["tokens"][: len(choices)])
    return Example("t", "0" * 16, "question", requests, gold or (0,), choices)


def task(kind: Any, name: str = "t", **changes: Any) -> TaskExamples:
    return TaskExamples(name, "1", kind, "train[0:1]", 0, [replace(example(), task=name)], [], **changes)


def ranked(norm: str, temperature: float = 1.0) -> list[float]:
    return [total / length / temperature for total, length in zip(SUMS, LENGTHS[norm], strict=True)]


def plain_choice_loss(scores: list[float], gold: tuple[int, ...]) -> float:
    """Minus the logarithm of the probability that the softmax gives to all right choices together."""
    weights = [math.exp(score) for score in scores]
    return -math.log(sum(weights[index] for index in gold) / sum(weights))


def test_the_lengths_of_choices_are_what_lm_eval_divides_by() -> None:
    for norm, lengths in LENGTHS.items():
        assert choice_lengths(example(), norm) == lengths  # type: ignore[arg-type]
    assert choice_lengths(example(choices=("", "b", "c")), "characters") == [1, 1, 1]


def test_answer_is_the_mean_negative_loglikelihood_of_the_right_answers_tokens() -> None:
    objective = TaskObjective("answer", "characters", 7.0)
    question = example(2)
    assert list(objective.requests(question)) == [question.requests[2]]
    found = objective.outcome(question, torch.tensor(SUMS[2:]))
    assert float(found.loss) == pytest.approx(9.0 / 3) and found.right is None
    # The same where all choices were scored.
    assert float(objective.outcome(question, torch.tensor(SUMS)).loss) == pytest.approx(9.0 / 3)


@pytest.mark.parametrize("norm", list(LENGTHS))
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("gold", [(0,), (1,), (0, 2)])
def test_choice_is_the_cross_entropy_of_the_softmax_over_choices(
    norm: Any, temperature: float, gold: tuple[int, ...]
) -> None:
    objective = TaskObjective("choice", norm, temperature)
    question = example(*gold)
    assert objective.requests(question) == question.requests
    found = objective.outcome(question, torch.tensor(SUMS, dtype=torch.float64))
    scores = ranked(norm, temperature)
    assert float(found.loss) == pytest.approx(plain_choice_loss(scores, gold))
    assert found.right is (scores.index(max(scores)) in gold)


@pytest.mark.parametrize("norm", list(LENGTHS))
def test_both_is_the_sum_of_the_two(norm: Any) -> None:
    question, sums = example(2), torch.tensor(SUMS, dtype=torch.float64)
    both = TaskObjective("both", norm, 2.0)
    assert both.requests(question) == question.requests
    parts = [TaskObjective(name, norm, 2.0).outcome(question, sums).loss for name in ("answer", "choice")]  # type: ignore[arg-type]
    assert float(both.outcome(question, sums).loss) == pytest.approx(float(sum(parts)))
    assert both.outcome(question, sums).right is TaskObjective("choice", norm).outcome(question, sums).right


def test_losses_can_be_differentiated() -> None:
    sums = torch.tensor(SUMS, dtype=torch.float64, requires_grad=True)
    TaskObjective("choice", "none", 2.0).outcome(example(0), sums).loss.backward()
    # The derivative of the cross-entropy of a softmax: probability minus target, over the temperature.
    target = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(sums.grad, ((sums / 2).softmax(0) - target).detach() / 2)


def test_the_typical_margin_is_the_median_distance_of_the_best_right_and_the_best_wrong_choice() -> None:
    objective = TaskObjective("choice")
    questions = [example(0), example(1), example(0, 2), example(0, 1, 2)]
    sums = [torch.tensor(SUMS)] * 4
    # |-7 + 1.5|, |-1.5 + 7|, |-7 + 1.5|; where all are right, nothing is wrong to be far from.
    assert objective.typical_margin(questions, sums) == pytest.approx(5.5)
    by_length = TaskObjective("choice", "characters")
    expected = abs(SUMS[0] / 5 - SUMS[2] / 12)  # the best of the wrong: -0.75 and -0.75
    assert by_length.typical_margin([example(0)], sums[:1]) == pytest.approx(expected)
    assert objective.typical_margin([example(0)], [torch.zeros(3)]) == SMALLEST_TEMPERATURE
    assert objective.typical_margin([example(0, 1, 2)], sums[:1]) == 1.0


def test_tasks_without_choices_learn_answers_whatever_is_asked() -> None:
    tasks = [task("choice", "a"), task("text", "b")]
    names = {asked: training_objectives(tasks, plain(objective=asked)) for asked in (None, "answer", "choice", "both")}
    assert {asked: [found["a"].name, found["b"].name] for asked, found in names.items()} == {
        None: ["both", "answer"],
        "answer": ["answer", "answer"],
        "choice": ["choice", "answer"],
        "both": ["both", "answer"],
    }
    for asked in ("choice", "both"):
        with pytest.raises(TrainingError, match=f"objective {asked}: there are no choices in b; use answer"):
            training_objectives(tasks[1:], plain(objective=asked))


def test_each_kind_of_examples_learns_what_it_can() -> None:
    kinds = [task("choice", "a"), task("text", "b"), task("pair", "c")]
    names = {
        asked: [training_objectives(kinds, plain(objective=asked))[name].name for name in "abc"]
        for asked in (None, "answer", "choice", "both", "preference")
    }
    assert names == {
        None: ["both", "answer", PAIR_OBJECTIVE],
        "answer": ["answer", "answer", "answer"],
        "choice": ["choice", "answer", "choice"],
        "both": ["both", "answer", "both"],
        "preference": ["both", "answer", "preference"],
    }
    with pytest.raises(TrainingError, match="objective preference: there are no pairs with a rejected text in b; use"):
        training_objectives([task("text", "b")], plain(objective="preference"))
    with pytest.raises(TrainingError, match=r"no pairs with a rejected text in a and b; use both"):
        training_objectives(kinds[:2], plain(objective="preference"))
    temperatures = [
        training_objectives(kinds, plain(objective="preference", temperature=given))["c"].temperature
        for given in (None, 3.0)
    ]
    assert temperatures == [PREFERENCE_TEMPERATURE, 3.0] == [10.0, 3.0]


@pytest.mark.parametrize("norm", ["none", "characters"])
def test_preference_is_the_loss_of_bipo_over_both_directions(norm: Any) -> None:
    pair = example(0, choices=CHOICES[:2])
    steered, opposed, unchanged = [-3.0, -4.0], [-9.0, -2.0], [-7.0, -1.5]
    lengths, beta = LENGTHS[norm], 0.25

    def margin(sums: list[float]) -> float:
        return sums[0] / lengths[0] - sums[1] / lengths[1]

    def minus_log_sigmoid(value: float) -> float:
        return math.log1p(math.exp(-value))

    # For direction d: -log sigmoid(d * beta * (log-ratio of the chosen text - log-ratio of the rejected one)).
    expected = [
        minus_log_sigmoid(direction * beta * (margin(sums) - margin(unchanged)))
        for direction, sums in ((1, steered), (-1, opposed))
    ]
    objective = TaskObjective("preference", norm, 1 / beta)
    reference = torch.tensor(unchanged)
    found = objective.outcome(pair, torch.tensor(steered), reference)
    assert float(found.loss) == pytest.approx(expected[0] / 2)
    assert float(objective.opposed(pair, torch.tensor(opposed), reference)) == pytest.approx(expected[1] / 2)
    assert found.right is (margin(steered) > 0) and objective.requests(pair) == pair.requests
    assert float(objective.outcome(pair, reference, reference).loss) == pytest.approx(math.log(2) / 2)


def test_training_follows_the_settings_and_ranking_does_not() -> None:
    settings = plain(objective="answer", choice_norm="bytes", temperature=3.0)
    assert training_objectives([task("choice")], settings)["t"] == TaskObjective("answer", "bytes", 3.0)
    assert training_objectives([task("choice")], plain(temperature=None))["t"].temperature == 1.0
    # Variants are compared at temperature 1 by what lm-eval ranks by.
    assert ranking_objectives([task("choice"), task("text", "u"), task("pair", "v")], "bytes") == {
        "t": TaskObjective("choice", "bytes", 1.0),
        "v": TaskObjective("choice", "bytes", 1.0),
        "u": TaskObjective("answer", "bytes", 1.0),
    }
    assert PLAIN.objective is None and TRAINING_OBJECTIVE != RANKING_LOSS


def test_a_mean_score_weighs_losses_and_counts_right_answers() -> None:
    outcomes = [Outcome(torch.tensor(1.0), True), Outcome(torch.tensor(4.0), False), Outcome(torch.tensor(2.0), None)]
    found = mean_score(outcomes, [3.0, 1.0, 0.5], "m")
    assert found == Score(loss=(3 * 1 + 4 + 0.5 * 2) / 4.5, accuracy=0.5, n=3, measure="m")
    assert mean_score(outcomes[2:], [7.0], "m") == Score(loss=2.0, accuracy=None, n=1, measure="m")
