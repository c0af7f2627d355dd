from __future__ import annotations

import json
from typing import Any

import pytest
from booster_cases import made
from pydantic import ValidationError

from aft_harness.boosters.model_identity import ModelIdentity
from aft_harness.boosters.variant import BASELINE, Variant, VariantRecord, distinct

MODEL = ModelIdentity(
    name="toy", revision=None, fingerprint="f" * 64, architecture="LlamaForCausalLM", layers=4, hidden_size=8
)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("baseline", "baseline"),
        ("a.safetensors", "a"),
        ("a.safetensors:0.5", "a-0.5"),
        ("a.safetensors:-2+b.safetensors", "a--2+b"),
        ("hf://me/arc/arc.safetensors@v1", "hf-me-arc-arc-v1"),
        ("../../etc/passwd", "etc-passwd"),
        ("..", "booster"),
        (".hidden", "hidden"),
        ("", "booster"),
        ("größer", "größer"),
    ],
)
def test_a_name_as_a_folder_stays_where_it_is_put(name: str, folder: str) -> None:
    assert Variant(name).folder == folder


def test_names_differ_also_as_folders() -> None:
    booster = made(1)
    named = ["a", "a", "b", "A", "a (2)", "a", "b.safetensors"]
    variants = distinct([Variant(name, booster, place) for place, name in enumerate(named)])
    assert [variant.strength for variant in variants] == list(range(len(named)))
    assert [variant.name for variant in variants[:3]] == ["a", "a (2)", "b"]
    for names in ([each.name.casefold() for each in variants], [each.folder.casefold() for each in variants]):
        assert len(set(names)) == len(named)
    assert distinct([]) == []


def test_names_that_differ_are_kept() -> None:
    variants = [BASELINE, Variant("a.safetensors"), Variant("a.safetensors:0.5")]
    assert distinct(variants) == variants


def test_a_record_says_what_ran() -> None:
    tasks = [{"task": "a", "n_train": 5}, {"task": "b"}]
    booster = made(1, 3).with_provenance(method="aft", objective="both", seed=4, tasks=tasks)
    record = VariantRecord.of(Variant("mine", booster, 0.5), MODEL, "cpu", "0.1.0")
    assert record.to_json() == {
        "version": "0.1.0",
        "base_model": MODEL.model_dump(),
        "device": "cpu",
        "booster_sha256": booster.sha256,
        "layers": [1, 3],
        "strength": 0.5,
        "method": "aft",
        "objective": "both",
        "trained_on": ["a", "b"],
        "trained_n": 5,
        "seed": 4,
        "booster_parameters": 16,
    }


def test_the_record_of_the_baseline_names_no_booster() -> None:
    told = VariantRecord.of(BASELINE, MODEL, "cpu", "0.1.0").to_json()
    assert told == {"version": "0.1.0", "base_model": MODEL.model_dump(), "device": "cpu", "booster_sha256": None}


@pytest.mark.parametrize("variant", [BASELINE, Variant("a", made(2)), Variant("b", made(0, 3, method="aft"), -1.5)])
def test_a_results_file_brings_a_record_back(variant: Variant) -> None:
    record = VariantRecord.of(variant, MODEL, "cuda", "0.1.0")
    told = json.loads(json.dumps(record.to_json()))
    assert VariantRecord.model_validate(told) == record
    assert VariantRecord.model_validate({**told, "later": 1}) == record


@pytest.mark.parametrize("wrong", [{"strength": "much"}, {"layers": 3}, {"base_model": "toy"}, {"trained_n": "x"}])
def test_malformed_records_are_refused(wrong: dict[str, Any]) -> None:
    told = VariantRecord.of(Variant("a", made(2)), MODEL, "cpu", "0.1.0").to_json()
    with pytest.raises(ValidationError):
        VariantRecord.model_validate({**told, **wrong})
