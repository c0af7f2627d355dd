"""What a study costs: which cells are counted, and how much of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.score_store import ScoreStore
from aft_harness.studies import cost, transfer
from aft_harness.studies.plan import Plan

TOYS = str(Path(__file__).parents[1] / "toy_tasks")


@pytest.fixture(scope="module")
def lm(tiny_checkpoint: Any) -> SteeredHFLM:
    return SteeredHFLM(str(tiny_checkpoint("llama")), device="cpu", batch_size=4)


def study(lm: SteeredHFLM, folder: Path, **changes: Any) -> transfer.Study:
    content: dict[str, Any] = {
        "models": [lm.pretrained],
        "train": ["toy_choice"],
        "evaluate": {"toy_text": {"docs": "0:6"}, "toy_choice": {}},
        "layers": [[1]],
        "recipe": {"epochs": 1},
        "include_path": [TOYS],
    }
    return transfer.Study(lm, Plan.of({**content, **changes}), folder)


def test_texts_are_counted_as_long_as_they_may_be(lm: SteeredHFLM, tmp_path: Path) -> None:
    found = study(lm, tmp_path)
    written, chosen = (cost.evaluation_cost(found, asked, [1.0, 0.5]) for asked in found.plan.evaluations)
    assert written.steps == 3 * 8 * 2  # the unchanged model and two boosters, in batches of 4 and 2 texts of 8 tokens
    assert chosen.steps == 0 < chosen.tokens
    assert len(written.prompts) == 4 and not chosen.prompts


def test_choices_cost_one_full_pass_and_the_upper_layers_of_each_booster(lm: SteeredHFLM, tmp_path: Path) -> None:
    found = study(lm, tmp_path)
    _, asked = found.plan.evaluations
    alone = cost.evaluation_cost(found, asked, []).tokens
    task = found.tasks.leaves(["toy_choice"])["toy_choice"]
    tokens = set()
    for doc in task.eval_docs:
        context = lm.tok_encode(task.doc_to_text(doc))
        for choice in task.doc_to_choice(doc):
            inputs = (*context, *lm.tok_encode(f" {choice}"))[:-1]
            tokens |= {(doc["question"], inputs[: count + 1]) for count in range(len(inputs))}
    # Questions share their first tokens, of which rows of 256 columns hold one copy each.
    assert 0.8 * len(tokens) < alone <= len(tokens)
    assert cost.evaluation_cost(found, asked, [1.0, 0.5]).tokens == pytest.approx(2.5 * alone)


def test_every_cell_has_an_estimate_until_it_is_done(lm: SteeredHFLM, tmp_path: Path) -> None:
    found = study(lm, tmp_path, seeds=[0, 1], evaluate={"toy_choice": {}, "toy_text": {"docs": "0:6", "seeds": [0]}})
    before = list(cost.estimates(found))
    assert [estimate.cell for estimate in before] == [
        "train toy_choice, layers 1, seed 0",
        "train toy_choice, layers 1, seed 1",
        "evaluate toy_choice, 2 boosters",
        "evaluate toy_text, 1 boosters",
    ]
    assert all(estimate.seconds is not None and estimate.seconds > 0 for estimate in before)
    found.train(found.trainings[0])
    after = [estimate.seconds is None for estimate in cost.estimates(found)]
    assert after == [True, False, False, False]
    booster = found.train(found.trainings[0])
    with ScoreStore(tmp_path / "scores.sqlite") as store:
        found.evaluate(found.plan.evaluations[1], [booster], store)
    assert [estimate.seconds is None for estimate in cost.estimates(found)] == [True, False, False, True]
