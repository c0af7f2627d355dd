"""A card's claims evaluated again, on the very documents that they are about."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_cases import Hub

import aft_harness
from aft_harness.boosters.booster import Booster
from aft_harness.errors import AftError, ModelError, TaskError
from aft_harness.publish.library.push import push
from aft_harness.publish.library.verification import verify
from aft_harness.results import leaderboard, table

TOYS = str(Path(__file__).parents[2] / "toy_tasks")
SETTINGS: dict[str, Any] = {"include_path": [TOYS], "model_args": {"device": "cpu"}}


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


@pytest.fixture(scope="module")
def measured(model: str) -> tuple[Booster, list[dict[str, Any]]]:
    """A booster that changes answers, and rows about it: of all documents of one task, and of some of another."""
    with aft_harness.opened(model, device="cpu") as lm:
        base = lm.base_model
    vector = 4 * torch.randn(32, generator=torch.Generator().manual_seed(1))
    booster = Booster.static({1: vector}, {"base_model": base.model_dump(), "method": "aft"})
    rows: list[dict[str, Any]] = []
    for task, docs in (("toy_choice", None), ("toy_two_right", "3:9")):
        found = aft_harness.evaluate(model, tasks=task, boosters={"b": booster}, docs=docs, **SETTINGS)
        rows += table.to_rows(found.table)
    return booster, leaderboard.corrected(rows)


@pytest.fixture
def published(loopback_hub: Hub, measured: tuple[Booster, list[dict[str, Any]]]) -> str:
    booster, rows = measured
    return push(booster, "me/toy", rows=rows).address


def outcomes(verdicts: list[Any]) -> list[str]:
    return [verdict.outcome for verdict in verdicts]


def test_a_card_that_holds(published: str, model: str) -> None:
    told: list[str] = []
    found = verify(published, model, on_task=told.append, **SETTINGS)
    assert outcomes(found) == ["holds"] * len(found) and told == ["toy_choice", "toy_two_right"]
    assert {verdict.reason for verdict in found} == {"same documents, equal scores"}
    assert [verdict.found["n"] for verdict in found if verdict.found] == [12, 6]
    assert all(
        verdict.found and verdict.found["documents_sha256"] == verdict.claim["documents_sha256"] for verdict in found
    )


def test_claims_by_task_and_quick_looks(published: str, model: str) -> None:
    (one,) = verify(published, model, tasks="toy_two_right", limit=4, **SETTINGS)
    assert one.found is not None and one.found["n"] == 4 and one.reason.startswith("4 of the documents")
    with pytest.raises(TaskError, match="its card claims nothing on arc_easy, but on toy_choice, toy_two_right"):
        verify(published, model, tasks="arc_easy", **SETTINGS)


def test_a_card_that_does_not_hold(
    loopback_hub: Hub, model: str, measured: tuple[Booster, list[dict[str, Any]]]
) -> None:
    booster, rows = measured
    better = [{**row, "steered": row["steered"] + 0.5, "delta": row["delta"] + 0.5} for row in rows]
    better[1]["documents_sha256"] = "0" * 16  # of a task that has changed
    address = push(booster, "me/boast", rows=better).address
    first, second = verify(address, model, **SETTINGS)
    assert first.outcome == "does not hold" and "same documents, scores differ by up to 50.0 points" in first.reason
    assert "the card's documents are not in the task" in second.reason


def test_what_cannot_be_measured_is_not_said_to_hold(
    loopback_hub: Hub, model: str, measured: tuple[Booster, list[dict[str, Any]]]
) -> None:
    booster, rows = measured
    cases = [
        {"task": "toy_nothing"},
        {"task_version": "9.0"},
        {"task": "toy_group"},
        {"metric": "nothing"},
        {"prompts_sha256": "x" * 16},
    ]
    changed = [{**rows[0], **case} for case in cases]
    found = verify(push(booster, "me/odd", rows=changed).address, model, **SETTINGS)
    assert outcomes(found) == ["not checked"] * len(cases)
    text = " ".join(sorted(verdict.reason for verdict in found))
    assert "unknown task 'toy_nothing'" in text and "version 9.0 of the task; this is 1.0" in text
    assert "is a group of tasks" in text and "no such metric" in text and "the prompts differ" in text


def test_the_claims_are_about_their_model(
    published: str, tiny_checkpoint: Any, loopback_hub: Hub, measured: tuple[Booster, list[dict[str, Any]]]
) -> None:
    with pytest.raises(ModelError, match=r"the claims are about .* not about"):
        verify(published, str(tiny_checkpoint("llama", seed=1)), **SETTINGS)
    with pytest.raises(ModelError, match=r"its base model is no model of the hub .*; name the model"):
        verify(published, **SETTINGS)
    with pytest.raises(AftError, match="its card claims nothing, so there is nothing to verify"):
        verify(push(measured[0], "me/silent").address, "nowhere", **SETTINGS)
    assert sys.modules["lm_eval"]
