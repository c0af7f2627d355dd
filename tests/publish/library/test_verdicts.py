from __future__ import annotations

from typing import Any

import pytest
from library_cases import booster, row

from aft_harness.publish.library.verdicts import Verdict, judged, matched, render

CLAIM = row(booster())
FEW = {"n": 50, "documents_sha256": "f" * 16}


@pytest.mark.parametrize(
    ("found", "outcome", "reason"),
    [
        ({}, "holds", "same documents, equal scores"),
        ({"steered": 0.634, "delta": 0.134}, "holds", "same documents, scores differ by up to 0.9 points"),
        ({"steered": 0.636, "delta": 0.136}, "does not hold", "same documents, scores differ by up to 1.1 points"),
        # The same change from another baseline is another result.
        ({"baseline": 0.4, "steered": 0.525}, "does not hold", "same documents, scores differ by up to 10.0 points"),
        ({"prompts_sha256": "x"}, "not checked", "the prompts differ from those on the card"),
        (
            {**FEW, "delta": 0.0, "ci_low": -0.12, "ci_high": 0.12},
            "holds",
            "50 of the documents, compared by intervals",
        ),
        (
            {**FEW, "delta": 0.0, "ci_low": -0.1, "ci_high": 0.1},
            "does not hold",
            "50 of the documents, compared by intervals",
        ),
        (
            {**FEW, "delta": 0.4, "ci_low": 0.3, "ci_high": 0.5},
            "does not hold",
            "50 of the documents, compared by intervals",
        ),
        ({**FEW, "n": 500, "delta": 0.1}, "holds", "other documents, compared by intervals"),
        ({**FEW, "ci_low": None}, "not checked", "other documents, and no interval to compare by"),
        ({**FEW, "ci_low": float("nan")}, "not checked", "other documents, and no interval to compare by"),
    ],
)
def test_verdicts(found: dict[str, Any], outcome: str, reason: str) -> None:
    verdict = judged(CLAIM, {**CLAIM, **found})
    assert (verdict.outcome, verdict.reason) == (outcome, reason)


def test_one_document_may_always_differ() -> None:
    few = {**CLAIM, "n": 8}
    assert judged(few, {**few, "steered": few["steered"] + 1 / 8}).outcome == "holds"
    assert judged(few, {**few, "steered": few["steered"] + 2 / 8}).outcome == "does not hold"


def test_numbers_that_are_no_fractions_may_differ_by_their_hundredth() -> None:
    bits = {**CLAIM, "metric": "bits_per_byte", "gained": None, "baseline": 2.0, "steered": 2.2, "delta": 0.2}
    assert judged(bits, {**bits, "steered": 2.221}).outcome == "holds"
    assert judged(bits, {**bits, "steered": 2.223}).outcome == "does not hold"


def test_rows_from_before_digests_were_recorded_are_compared_by_intervals() -> None:
    old = {**CLAIM, "documents_sha256": "", "prompts_sha256": ""}
    assert (
        judged(old, {**CLAIM, "steered": 0.7, "delta": 0.2, "ci_low": 0.15, "ci_high": 0.25}).outcome == "does not hold"
    )
    assert judged(old, CLAIM).reason == "other documents, compared by intervals"


def test_a_claim_is_compared_with_its_own_row() -> None:
    rows = [{**CLAIM, "metric": "acc_norm", "steered": 0.0}, {**CLAIM, "strength": 2.0, "steered": 0.0}, CLAIM]
    assert matched(CLAIM, rows).outcome == "holds"
    assert matched(CLAIM, rows, "remark").reason == "same documents, equal scores (remark)"
    assert matched(CLAIM, rows[:2]) == Verdict(CLAIM, "not checked", "the task has no such metric")


def test_a_table_of_verdicts() -> None:
    missing = Verdict(CLAIM, "not checked", "unknown task")
    text = render([judged(CLAIM, CLAIM), missing])
    assert text.splitlines()[0].split()[:3] == ["task", "metric", "n"] and "unknown task" in text
    assert missing.to_json()["found"] is None and judged(CLAIM, CLAIM).to_json()["outcome"] == "holds"
