"""What a card says: only what rows say, in words, whatever they say; and nothing that could be taken for markup."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from library_cases import booster, row

from aft_harness.boosters.booster import Booster
from aft_harness.publish.library import card
from aft_harness.publish.library.card import About, in_words, render
from aft_harness.publish.library.publication import claimed

BOOSTER = booster(licence="Apache-2.0")
ROWS = [
    row(BOOSTER),
    row(BOOSTER, metric="acc_norm", p_holm=None, delta=0.1),
    row(BOOSTER, "toy_other", 0.0, p_value=1.0, p_holm=1.0),
    row(BOOSTER, "toy_worse", -0.05, num_fewshot=5),
    row(BOOSTER, "plain_text", 0.02, metric="bits_per_byte", gained=None, lost=None, baseline=0.9, steered=0.92),
    row(BOOSTER, strength=2.0, p_holm=None),
]


def about(**changes: Any) -> About:
    common = About(
        BOOSTER, "a.safetensors", 968, "arc", "hf://me/arc/a.safetensors", ROWS, frozenset({"bits_per_byte"})
    )
    return replace(common, **changes)


def data_of(text: str) -> ModelCardData:
    """The metadata that the hub reads."""
    data = ModelCard(text).data
    assert isinstance(data, ModelCardData)
    return data


def lines(text: str) -> list[list[str]]:
    """Cells of the lines of all tables."""
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ") and "---" not in line]


def test_the_tables_say_what_the_rows_say() -> None:
    found = {cells[0]: cells for cells in lines(render(about())) if cells[0] != "task"}
    assert found["toy_choice"][1:] == [
        *("acc_norm 50.0% to 60.0%", "+10.0 points [+5.0, +15.0]", "(0.0001, not corrected)", "400", "5.0% (20)")
    ]
    assert found["toy_other"][1].startswith("no significant change (one below 4.0 points could go unseen): acc 50.0%")
    assert found["toy_worse, 5-shot"][1:3] == ["worse: acc 50.0% to 45.0%", "-5.0 points [-10.0, +0.0]"]
    assert found["plain_text"][1:4] == ["worse: bits_per_byte 0.9 to 0.92", "+0.02 [-0.03, +0.07]", "0.0002"]
    assert "toy_choice, strength 2" in found
    groups = re.findall(r"^(On .*|Other .*):$", render(about()), re.MULTILINE)
    assert len(groups) == 4 and render(about()).count("| better: acc 50.0% to 62.5% |") == 1


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({}, "better"),
        ({"delta": -0.1}, "worse"),
        ({"metric": "bits_per_byte"}, "worse"),
        ({"metric": "bits_per_byte", "delta": -0.1}, "better"),
        ({"p_holm": 0.05}, "no significant change (one below 4.0 points could go unseen)"),
        ({"delta": 0.0}, "no significant change (one below 4.0 points could go unseen)"),
        ({"p_holm": 0.2, "min_detectable": None}, "no significant change"),
        ({"p_holm": 0.2, "min_detectable": float("inf")}, "no significant change"),
    ],
)
def test_words(cells: dict[str, Any], words: str) -> None:
    assert in_words({**row(BOOSTER), **cells}, frozenset({"bits_per_byte"})) == words


def test_what_was_not_measured_is_said() -> None:
    text = render(about(rows=ROWS[:1]))
    assert "On other tasks: not measured." in text and "On plain text: not measured." in text
    none = render(about(rows=[]))
    assert "Not evaluated: no leaderboard has a row about this booster, so nothing is claimed." in none
    assert "model-index" not in none and "aft verify" not in none


def test_metadata_are_the_hubs() -> None:
    data = data_of(render(about()))
    assert (data.base_model, data["base_model_relation"], data.license) == ("m/n", "adapter", "apache-2.0")
    assert set(data.tags or ()) >= {"aft-harness", "steering-vector"} and data.library_name == "aft-harness"
    assert data["booster"] == {
        "file": "a.safetensors",
        "sha256": BOOSTER.sha256,
        "model": "m/n",
        "layers": "1-2",
        "parameters": 64,
        "trained_on": ["toy_choice"],
    }
    results = {(result.dataset_type, result.metric_type): result for result in data.eval_results or ()}
    assert len(results) == 4  # the claims: neither other metrics nor other strengths
    assert results["toy_worse", "acc"].metric_value == 0.45
    arguments = results["toy_worse", "acc"].metric_args
    assert arguments is not None and (arguments["delta"], arguments["num_fewshot"], arguments["n"]) == (-0.05, 5, 400)
    assert ("toy_choice", "acc", 0.625) in claimed(data.to_dict())


def test_models_that_are_not_on_the_hub_are_only_named() -> None:
    local = booster(base_model={"name": "SmolLM2 (Q4_1, dequantised)", "fingerprint": "a"})
    data = data_of(render(about(booster=local)))
    assert data.base_model is None and "base_model_relation" not in data
    named = render(about(booster=local, base_model="h/s"))
    assert data_of(named).base_model == "h/s"
    assert "[h/s](https://huggingface.co/h/s) (made and measured with SmolLM2 (Q4_1, dequantised))" in named
    assert "A booster for unknown:" in render(about(booster=Booster.static({1: torch.ones(32)}), rows=[]))


@pytest.mark.parametrize(
    ("licence", "expected"),
    [("Apache-2.0", ("apache-2.0", None)), ("cc-by-sa-4.0", ("cc-by-sa-4.0", None)), ("My (own): one", ("other",))],
)
def test_licences(licence: str, expected: tuple[str, ...]) -> None:
    data = data_of(render(about(booster=booster(licence=licence))))
    assert data.license == expected[0]
    assert data.license_name == (licence if expected[0] == "other" else None)


def test_text_from_outside_is_not_markup() -> None:
    evil = "a|b <script>[x](http://y)\n# c\x1b[31m"
    made = booster(base_model={"name": evil}, tasks=[{"task": evil, "n_train": 3}], method=evil)
    text = render(about(booster=made, title=evil, rows=[{**ROWS[0], "task": evil, "metric": evil}]))
    body = text.split("\n---\n", 1)[1]
    assert "<script>" not in body and "\x1b" not in body and "\n# c" not in body
    assert set(re.findall(r"(?<!\\)\]\((.*?)\)", body)) == {"results.csv"}
    assert [len(re.split(r"(?<!\\)\|", line)) for line in body.splitlines() if line.startswith("| a")] == [8]


def test_what_others_wrote_beside_it_is_kept() -> None:
    first = render(about())
    edited = first.replace(card.BEGIN, f"Before it.\n\n{card.BEGIN}") + "\nAfter it.\n"
    again = render(about(rows=ROWS[:1]), edited)
    assert "Before it." in again and again.rstrip().endswith("After it.") and again.count(card.BEGIN) == 1
    assert "toy_worse" not in again and data_of(again)["booster"]["sha256"] == BOOSTER.sha256
    assert render(about(rows=ROWS[:1]), again) == again == render(about(rows=ROWS[:1]), again.replace("\n", "\r\n"))
