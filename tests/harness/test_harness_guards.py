"""A score that is not a number is an error that names task, document and variant, and never an accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.variant import BASELINE, Variant
from aft_harness.errors import ModelError
from aft_harness.harness.evaluation import evaluate
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.score_store import ScoreStore
from aft_harness.harness.tasks import Tasks

TOYS = str(Path(__file__).parents[1] / "toy_tasks")
MATCH = r"{} gives a loglikelihood of (nan|-inf|inf) on document \d+ of task {}: .* float16; use dtype=float32"


@pytest.fixture
def overflowing(tiny_model: Any, tiny_tokenizer: Any) -> SteeredHFLM:
    """In float16 a large booster overflows."""
    return SteeredHFLM(pretrained=tiny_model("llama").to(torch.float16), tokenizer=tiny_tokenizer, batch_size=4)


HUGE = Variant("huge", Booster.static({1: torch.full((32,), 6e4)}), 2.0)


@pytest.mark.parametrize("task", ["toy_choice", "toy_rolling"])
def test_an_evaluation_is_refused(overflowing: SteeredHFLM, task: str, tmp_path: Path) -> None:
    with (
        ScoreStore(tmp_path / "s.sqlite") as store,
        pytest.raises(ModelError, match=MATCH.format("huge", task)),
    ):
        evaluate(overflowing, [BASELINE, HUGE], [task], source=Tasks([TOYS]), store=store)
    with ScoreStore(tmp_path / "s.sqlite") as store:  # what is kept is usable: the baseline goes on from it
        evaluate(overflowing, [BASELINE], [task], source=Tasks([TOYS]), store=store)


@pytest.mark.parametrize("packing", ["on", "off"])
def test_the_stock_evaluator_is_refused(tiny_model: Any, tiny_tokenizer: Any, packing: str) -> None:
    lm = SteeredHFLM(
        pretrained=tiny_model("llama").to(torch.float16),
        tokenizer=tiny_tokenizer,
        vector=HUGE.booster,
        scale=2,
        packing=packing,
    )
    with pytest.raises(ModelError, match=MATCH.format("booster .*", "toy_choice")):
        simple_evaluate(model=lm, tasks=["toy_choice"], task_manager=TaskManager(include_path=TOYS), bootstrap_iters=0)
