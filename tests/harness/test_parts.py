"""One evaluation by several workers: the stock result, sample by sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.variant import BASELINE, Variant
from aft_harness.engine.part import Part
from aft_harness.errors import TaskError
from aft_harness.harness import parts
from aft_harness.harness.answers import Answers
from aft_harness.harness.evaluation import evaluate
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.tasks import Tasks
from aft_harness.slices import Slice

TOYS = str(Path(__file__).parents[1] / "toy_tasks")
NAMES = ["toy_choice", "toy_text", "toy_mutual"]


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


def fresh(checkpoint: str, **arguments: Any) -> SteeredHFLM:
    return SteeredHFLM(checkpoint, device="cpu", batch_size=2, **arguments)


def variants() -> list[Variant]:
    return [BASELINE, Variant("a", Booster.static({1: torch.linspace(-2, 2, 32)}))]


def test_the_parts_are_put_together_to_the_stock_result(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(fresh(checkpoint), variants(), NAMES, source=Tasks([TOYS]))
    answers: list[Answers] = []
    for index in (2, 0, 1):  # in any order, each by a worker of its own
        store = Answers()
        parts.answer(fresh(checkpoint), variants(), NAMES, part=Part(index, 3), store=store, source=Tasks([TOYS]))
        answers.append(Answers.of(store.new()))
    assert all(each.count for each in answers)
    assert sum(each.count for each in answers) == Answers(answers).count  # nothing is answered twice
    for owner, name in ((SteeredHFLM, "score_variants"), (SteeredHFLM, "generate_until")):
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: pytest.fail("answered again"))
    found = evaluate(fresh(checkpoint), variants(), NAMES, source=Tasks([TOYS]), store=Answers(answers))
    monkeypatch.undo()
    for expected, other in zip(whole, found, strict=True):
        assert expected.results["samples"] == other.results["samples"]
        assert expected.results["results"] == other.results["results"]
    stock = simple_evaluate(
        fresh(checkpoint), tasks=NAMES, task_manager=TaskManager(include_path=TOYS), bootstrap_iters=0
    )
    assert stock is not None
    for task, samples in stock["samples"].items():
        ours = found[0].results["samples"][task]
        fields = ("doc_id", "doc_hash", "prompt_hash", "target_hash", "filter", "filtered_resps")
        assert [[each[name] for name in fields] for each in ours] == [
            [each[name] for name in fields] for each in samples
        ]
        assert found[0].results["results"][task] == stock["results"][task]


def test_a_slice_is_cut_in_the_same_way_and_tasks_are_left_as_they_were(checkpoint: str) -> None:
    lm, source, store = fresh(checkpoint), Tasks([TOYS]), Answers()
    parts.answer(lm, variants(), ["toy_choice"], part=Part(0, 1), store=store, source=source, docs=Slice(2, 5))
    assert store.count == 2 * 3 * 3  # variants, documents, choices
    task = source.leaves(["toy_choice"])["toy_choice"]
    assert "apply_filters" not in vars(task)
    (baseline,) = evaluate(lm, [BASELINE], ["toy_choice"], source=source, docs=Slice(2, 5), store=store)
    assert [each["doc_id"] for each in baseline.results["samples"]["toy_choice"]] == [2, 3, 4]


def test_samples_and_whole_texts_are_left_to_who_puts_it_together(checkpoint: str) -> None:
    store = Answers()
    parts.answer(fresh(checkpoint), variants(), ["toy_rolling"], part=Part(0, 1), store=store, source=Tasks([TOYS]))
    assert store.count == 0
    with pytest.raises(TaskError, match="no documents in this range"):
        parts.answer(
            *(fresh(checkpoint), variants(), ["toy_choice"]),
            part=Part(0, 1),
            store=store,
            source=Tasks([TOYS]),
            docs=Slice(90, 95),
        )
