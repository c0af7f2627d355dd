"""`aft show` and `aft mix`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_cases import TOYS, aft, assert_refused, bad_boosters

from aft_harness.boosters import references
from aft_harness.boosters.booster import Booster


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_show_refuses_bad_boosters_in_one_line(in_tmp: Path) -> None:
    for vector, reason in bad_boosters(in_tmp).items():
        if vector.startswith(("narrow", "deep")):  # fine in themselves
            assert aft("show", vector).exit_code == 0
            continue
        result = aft("show", vector)
        assert_refused(result, 2 if vector.endswith(":x") else 1, reason)
        assert result.exit_code == 2 or result.stderr.count("\n") == 1


def test_show_prints_what_a_booster_is(in_tmp: Path) -> None:
    provenance = {
        "base_model": {"name": "m/n", "fingerprint": "ab" * 32},
        "method": "aft",
        "objective": "both",
        "tasks": [{"task": "arc_easy", "split": "train[0:99]", "n_train": 90}],
        "measured_on": "development",
        "before": {"loss": 2.0, "accuracy": 0.25, "n": 4, "measure": "training objective"},
        "after": {"loss": 1.5, "accuracy": 0.5, "n": 4, "measure": "training objective"},
        "seed": 0,
        "licence": "MIT",
    }
    booster = Booster.static({1: torch.ones(4), 2: 2 * torch.ones(4)}, provenance)
    booster.save("a.safetensors")
    result = aft("show", "a.safetensors:0.5")
    assert result.exit_code == 0
    shown = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    assert ["booster", "a.safetensors:0.5"] in shown
    assert ["sha256", booster.sha256] in shown and ["parameters", "8 (hidden size 4)"] in shown
    assert ["method", "aft, objective both"] in shown and ["seed", "0"] in shown and ["licence", "MIT"] in shown
    assert ["before", "training objective 2.0000, accuracy 25.0% (development documents)"] in shown
    assert ["after", "training objective 1.5000, accuracy 50.0% (development documents)"] in shown
    for line in (
        "base model  m/n (abababababab)",
        "layer 1     static, norm 2.0000",
        "layer 2     static, norm 4.0000",
    ):
        assert line in result.stdout.splitlines()
    assert "trained on  arc_easy train[0:99]: 90 documents" in result.stdout.splitlines()
    starts = {len(line) - len(line.split("  ", 1)[1].lstrip()) for line in result.stdout.splitlines()}
    assert len(starts) == 1, "values are not aligned"


def test_what_a_file_says_of_itself_forges_no_line(in_tmp: Path) -> None:
    forged = "aft\nsha256      " + "0" * 64
    provenance = {
        "base_model": {"name": f"m\x1b[2J{forged}"},
        "method": forged,
        "objective": "\u202eboth\x9b",
        "tasks": [{"task": forged, "split": "\rtrain", "n_train": 3}],
        "parts": [{"booster_sha256": "\n\n", "strength": 0.5}],
        "licence": "MIT\x7f\x00",
        "dtype": "\u2028float32",
    }
    booster = Booster.static({1: torch.ones(4)}, provenance)
    booster.save("a.safetensors")
    result = aft("show", "a.safetensors")
    assert result.exit_code == 0 and result.stdout.replace("\n", "").isprintable()
    shown = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("sha256")]
    assert shown == [booster.sha256]
    assert json.loads(aft("show", "a.safetensors", "--json").stdout)["provenance"] == booster.provenance.to_json()
    Path("a.safetensors").rename("a\n\x1b[2J.safetensors")
    assert aft("show", "a\n\x1b[2J.safetensors").stdout.startswith("booster     a  [2J.safetensors\n")
    refused = aft("show", "b\n\x1b[2J.safetensors")
    assert refused.exit_code == 1 and refused.stderr == "Error: b  [2J.safetensors: no such booster file\n"


def test_show_prints_json(in_tmp: Path) -> None:
    booster = Booster.static({1: torch.ones(4)}, {"method": "aft", "seed": 3, "documents": {"hashes": ["0" * 16]}})
    booster.save("a.safetensors")
    result = aft("show", "a.safetensors:2", "--json")
    assert result.exit_code == 0 and result.stderr == ""
    found = json.loads(result.stdout)
    assert found["booster_sha256"] == booster.sha256 and found["strength"] == 2
    assert (found["parameters"], found["hidden_size"]) == (4, 4)
    assert found["injections"] == booster.specs and found["provenance"] == booster.provenance.to_json()


def test_mixing_makes_a_file_that_does_what_the_plus_grammar_does(in_tmp: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        generator = torch.Generator().manual_seed(seed)
        Booster.static({seed: torch.randn(32, generator=generator)}).save(f"{name}.safetensors")
    result = aft("mix", "a.safetensors:0.5", "b.safetensors:-2", "-o", "c.safetensors")
    assert result.exit_code == 0 and "2 boosters, layers 0-1, 64 parameters" in result.stdout
    mixed = references.load("a.safetensors:0.5+b.safetensors:-2").booster
    assert mixed is not None and Booster.load("c.safetensors").sha256 == mixed.sha256
    Booster.static({0: torch.ones(32)}, {"base_model": {"name": "x", "fingerprint": "1"}}).save("x.safetensors")
    Booster.static({0: torch.ones(32)}, {"base_model": {"name": "y", "fingerprint": "2"}}).save("y.safetensors")
    for vectors, exit_code, reason in (
        (["x.safetensors", "y.safetensors"], 1, "boosters for different models cannot be mixed: x (1), y (2)"),
        (["a.safetensors:high"], 2, "strength 'high' is not a number"),
        (["nowhere.safetensors"], 1, "no such booster"),
    ):
        assert_refused(aft("mix", *vectors, "-o", "d.safetensors"), exit_code, reason)
    assert_refused(aft("mix", "a.safetensors", "-o", "d.pt"), 2, "the file name must end in .safetensors")
    assert not Path("d.safetensors").exists()


def test_strengths_of_a_mixture_are_fitted_and_recorded(tiny_checkpoint: Any, in_tmp: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        vector = 0.3 * torch.randn(32, generator=torch.Generator().manual_seed(seed))
        Booster.static({1: vector}).save(f"{name}.safetensors")
    model = ["--model", str(tiny_checkpoint("llama")), "--include-path", TOYS]
    fit = ["--fit", "toy_choice", "--fit-docs", "6"]
    result = aft("mix", "a.safetensors", "b.safetensors:2", *fit, *model, "-o", "c.safetensors")
    assert result.exit_code == 0, result.stderr
    assert "On 6 development documents:" in result.stdout
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("strengths ")]
    strengths = [float(value) for value in line.removeprefix("strengths ").split(", ")]
    mixed = Booster.load("c.safetensors")
    parts = [Booster.load(f"{name}.safetensors").injections[1].tensors["vector"] for name in "ab"]
    expected = sum(strength * part for strength, part in zip(strengths, parts, strict=True))
    torch.testing.assert_close(mixed.injections[1].tensors["vector"], expected)
    record = mixed.provenance
    assert [part.strength for part in record.parts or ()] == pytest.approx(strengths)
    assert record.measured_on == "development" and record.after and record.before
    assert record.after.n == 6 and record.after.loss <= record.before.loss


def test_a_fit_needs_a_model_and_a_model_a_fit(in_tmp: Path) -> None:
    Booster.static({1: torch.ones(4)}).save("a.safetensors")
    for options in (["--fit", "toy_choice"], ["--model", "somewhere"]):
        result = aft("mix", "a.safetensors", *options, "-o", "b.safetensors")
        assert_refused(result, 2, "--fit and --model belong together")
        assert not Path("b.safetensors").exists()
