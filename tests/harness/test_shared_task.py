from __future__ import annotations

import gc
from collections import Counter
from itertools import islice
from typing import Any

import lm_eval.utils
import pytest
from harness_cases import TOYS

from aft_harness.boosters.variant import BASELINE
from aft_harness.harness.evaluation import evaluate
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.shared_task import built_once
from aft_harness.harness.tasks import Tasks


@pytest.fixture
def task() -> Any:
    """One of its own, which a test may change."""
    return Tasks([TOYS]).load(["toy_choice"])["tasks"]["toy_choice"]


def test_templates_are_rendered_once_a_document_whoever_asks_how_often(
    task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: Counter[tuple[str, str]] = Counter()
    apply_template = lm_eval.utils.apply_template

    def spy(template: str, doc: dict[str, Any]) -> str:
        rendered[template, str(doc)] += 1
        return apply_template(template, doc)

    fresh = [(task.doc_to_text(doc), task.doc_to_target(doc), task.doc_to_choice(doc)) for doc in task.eval_docs]
    monkeypatch.setattr(lm_eval.utils, "apply_template", spy)
    with built_once(task):
        for _ in range(3):
            assert fresh == [
                (task.doc_to_text(doc), task.doc_to_target(doc), task.doc_to_choice(doc)) for doc in task.eval_docs
            ]
        first, second = list(task.eval_docs)[:2]
        assert task.doc_to_text(first, "another template") == "another template"
        assert task.doc_to_text(dict(second)) == fresh[1][0]
    others = Counter({("another template", str(first)): 1})
    repeated = {key for key, count in (rendered - others).items() if count > 1}
    assert repeated == {(task.config.doc_to_text, str(second))}  # of the equal document, which is another one
    assert not {"doc_to_text", "eval_docs", "build_all_requests"} & set(vars(task))


def test_only_the_documents_that_are_reached_are_decoded(task: Any) -> None:
    decoded: list[int] = []

    class Rows(list[dict[str, Any]]):
        def __iter__(self) -> Any:
            for place in range(len(self)):
                decoded.append(place)
                yield self[place]

    rows = Rows(task.eval_docs)
    task.test_docs = lambda: rows
    with built_once(task):
        assert len(task.eval_docs) == len(rows)
        assert list(islice(task.eval_docs, 2)) == list(islice(task.eval_docs, 2)) == [rows[0], rows[1]]
    assert decoded == [0, 1]


def test_a_function_that_changes_a_document_changes_it_for_nobody_else(task: Any) -> None:
    task.config.process_results = lambda doc, results: {"acc": len(doc.pop("choices"))}
    before = [dict(doc) for doc in task.eval_docs]
    with built_once(task):
        for _ in range(2):
            seen = [dict(doc) for doc in task.eval_docs]
            for doc in task.eval_docs:
                task.process_results(doc, [])
            assert seen == before


def test_the_collector_is_left_as_it_was(tiny_checkpoint: Any) -> None:
    lm = SteeredHFLM(pretrained=str(tiny_checkpoint("llama")), device="cpu")
    evaluate(lm, [BASELINE], ["toy_choice"], source=Tasks([TOYS]), limit=2)
    assert gc.get_freeze_count() == 0
