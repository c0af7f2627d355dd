from __future__ import annotations

from report_cases import booster, row

from aft_harness.publish.report.cards import TASKS, cards
from aft_harness.publish.report.sources import BoosterFile


def test_a_card_says_what_the_file_records() -> None:
    made = booster(
        before={"loss": 2.0, "accuracy": 0.25, "n": 20, "measure": "training objective"},
        measured_on="development",
        versions={"torch": "2.13.0"},
        licence="MIT",
        documents={"count": 60, "hashes": ["0" * 16]},
        layer_sweep={"1": {"loss": 1.5, "n": 20}, "2": {"loss": 2.5, "n": 20}},
    )
    (card,) = cards([BoosterFile("mine", made, False)], [row(booster_sha256=made.sha256)])
    facts = dict(card.facts)
    assert facts["before"] == "training objective 2.0000, accuracy 25.0% on 20 development documents"
    assert facts["versions"] == "torch 2.13.0" and facts["licence"] == "MIT" and "after" not in facts
    assert facts["trained with"] == "kind static, epochs 3, lr 0.05, batch size 8"
    assert dict(zip(TASKS, card.tasks[0], strict=True))["training"] == "60"
    assert card.losses == "2.0000 → 1.5000 → 1.2500" and card.spark.startswith("M")
    assert card.sweep is not None and [mark.marked for mark in card.sweep.series[0].marks] == [True, False]
    assert card.command and "efefefefefefefef" in card.note


def test_a_booster_without_a_file_is_told_by_the_table() -> None:
    rows = [row(), row(task="b"), row(seed="pooled", booster_sha256="00" * 32)]
    (card,) = cards([], rows)
    assert (card.name, card.sha256, card.command) == ("aft a L1", "ab" * 32, None)
    assert dict(card.facts)["trained on"] == "a" and "not among the sources" in card.note


def test_a_study_says_that_its_documents_differ() -> None:
    (card,) = cards([BoosterFile("mine", booster(), True)], [])
    assert card.command and card.note.startswith("A transfer study made it")


def test_where_a_booster_came_from_is_told() -> None:
    parts = [{"booster_sha256": "ab" * 32, "strength": 0.5}]
    made = booster(parts=parts, start={"booster_sha256": "cd" * 32}, imported={"format": "x", "sha256": "12" * 32})
    (card,) = cards([BoosterFile("mine", made, False)], [])
    facts = dict(card.facts)
    assert facts["part"] == f"booster {'ab' * 8} at strength 0.5"
    assert facts["started from"] == f"booster {'cd' * 8}" and facts["imported"] == f"x, sha256 {'12' * 8}"
