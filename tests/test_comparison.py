from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from aft_harness.results.statistics import compare

SCRIPTS = str(Path(__file__).parent.parent / "scripts" / "studies")


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SCRIPTS)
    from comparison import report as module

    yield module
    for name in [name for name in sys.modules if name.split(".")[0] in ("comparison", "documents")]:
        del sys.modules[name]


def cell(method: str, seed: int, outcomes: list[int], learned: int = 7) -> dict[str, Any]:
    named = {"method": method, "task": "arc_easy", "seed": seed, "parameters": learned, "file_bytes": 100, "tried": []}
    graded = {"acc": list(map(float, outcomes))}
    return {**named, "seconds": 1.0 + seed, "perplexity": 10.0 + seed, "outcomes": {"arc_easy": graded}}


ZERO = [0, 0, 0, 0, 1, 1, 1, 1, 0, 1]


def test_one_seed_is_paired_with_the_first_documents_of_the_unchanged_model(report: Any) -> None:
    _, row = report.rows([cell("zero-shot", 0, ZERO, 0), cell("ours", 0, [1, 1, 1, 1, 1, 1, 1, 0])])
    assert (row["n"], row["gained"], row["lost"], row["learned"]) == (8, 4, 1, "arc_easy")
    assert row["p_value"] == pytest.approx(0.375)  # 2 (1 + 5) / 2**5
    assert row["delta"] == pytest.approx(3 / 8)


def test_seeds_are_pooled_document_by_document(report: Any) -> None:
    first, second = [1, 1, 1, 1, 1, 1, 1, 0, 1, 1], [1, 1, 0, 1, 1, 1, 1, 1, 1, 1]
    found = [cell("zero-shot", 0, ZERO, 0), cell("ours", 0, first), cell("ours", 1, second)]
    _, row = report.rows(found)
    means = [(left + right) / 2 for left, right in zip(first, second, strict=True)]
    expected = compare(ZERO, means, means=True)
    assert (row["seeds"], row["seconds"], row["perplexity"]) == (2, 1.5, 10.5)
    assert (row["n"], row["gained"]) == (10, None)
    assert (row["delta"], row["p_value"]) == (pytest.approx(expected.delta), pytest.approx(expected.p_value))


def test_a_method_that_failed_is_named_with_its_error(report: Any) -> None:
    broken = {"method": "other", "task": "arc_easy", "seed": 0, "error": "cannot be installed"}
    rows = list(report.rows([cell("zero-shot", 0, ZERO, 0), broken]))
    assert rows[-1] == {"method": "other", "learned": "arc_easy", "error": "cannot be installed"}


def test_the_table_is_sorted_by_the_change(report: Any) -> None:
    found = [cell("zero-shot", 0, ZERO, 0), cell("worse", 0, [0] * 10), cell("better", 0, [1] * 10)]
    for each in found:  # by length-normalised sums, all do as the unchanged model
        each["outcomes"]["arc_easy"]["acc_norm"] = list(map(float, ZERO))
    lines = report.main_table(pd.DataFrame(report.rows(found)), "arc_easy").splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| better", "| zero-shot", "| worse"]
    assert "| 100.0% | +50.0 [" in lines[0] and "-50.0 [" in lines[2]
    assert [line.split(" | ")[8] for line in lines] == ["+0.0, 1", "50.0%", "+0.0, 1"]


def test_what_is_learned_and_what_it_costs_are_read_by_each_tasks_own_metric(report: Any) -> None:
    found = [cell("zero-shot", 0, ZERO, 0), cell("ours", 0, ZERO)]
    for each, right in zip(found, (0, 1), strict=True):
        each["outcomes"]["hellaswag"] = {"acc": [0.0] * 10, "acc_norm": [float(right)] * 10}
    frame = pd.DataFrame(report.rows(found))
    assert report.elsewhere_table(frame).splitlines()[2] == "| ours | ARC-Easy | +0.0 | +100.0* | +0.0% |"
    assert "| 0.0% |" in report.main_table(frame, "hellaswag").splitlines()[2]


def test_the_setting_that_was_right_most_often_is_kept(report: Any) -> None:
    from comparison.fitted import best

    tried = [(0.5, 1.0), (0.6, 3.0), (0.6, 2.0)]
    assert best([{"development_accuracy": right, "development_loss": loss} for right, loss in tried]) == 2
