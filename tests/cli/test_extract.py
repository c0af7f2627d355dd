"""`aft extract`: boosters without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_cases import TOYS, aft, assert_refused

from aft_harness.boosters.booster import Booster


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_extraction_writes_boosters_and_refuses_bad_input(model: str, in_tmp: Path) -> None:
    common = ["--model", model, "--device", "cpu", "--output", "a.safetensors"]
    tasks = ["--tasks", "toy_choice", "--include-path", TOYS]
    result = aft("extract", "mean-difference", *common, *tasks, "--limit", "12")
    assert result.exit_code == 0, result.stderr
    provenance = Booster.load("a.safetensors").provenance
    assert provenance.method == "mean-difference" and provenance.answered_correctly is not None
    right = provenance.answered_correctly
    assert result.stdout == (
        f"a.safetensors: layer 2, {right} documents answered correctly, {12 - right} incorrectly\n"
    )
    shown = aft("show", "a.safetensors").stdout
    assert f"{right} of 12 documents answered correctly" in shown and "toy_choice train[0:24]: 12 documents" in shown
    Path("asked.txt").write_text("What is light?\n\nWho are you?\n")
    asked = ["extract", "function-vector", *common, "--questions", "asked.txt", "--layer", "1"]
    assert_refused(aft(*asked), 2, "a.safetensors: file exists; use --overwrite to replace it")
    result = aft(*asked, "--overwrite")
    assert result.exit_code == 0 and "layer 1, 2 questions" in result.stdout
    shown = aft("show", "a.safetensors").stdout
    assert "function-vector" in shown and "norm 1.0000" in shown and "objective" not in shown
    Path("empty.txt").write_text("\n")
    Path("binary.txt").write_bytes(b"\xff\xfe")
    before = Path("a.safetensors").read_bytes()
    for arguments, exit_code, reason in (
        (["function-vector", *common, "--questions", "empty.txt"], 1, "empty.txt: contains no questions"),
        (["function-vector", *common, "--questions", "binary.txt"], 1, "binary.txt: cannot be read as text"),
        (["function-vector", *common, "--questions", "nowhere.txt"], 2, "'--questions'"),
        (["function-vector", *common, "--layer", "9"], 1, "layer 9 is out of range"),
        (["function-vector", *common, "--layer", "x"], 2, "'--layer'"),
        (["mean-difference", *common, *tasks, "--limit", "1"], 1, "there is no difference"),
        (["mean-difference", *common, *tasks, "--tasks", "toy_text"], 1, "toy_text has no choices"),
        (["mean-difference", *common, *tasks, "--tasks", "toy_choice,toy_text"], 1, "takes one task, not 2"),
    ):
        assert_refused(aft("extract", *arguments, "--overwrite"), exit_code, reason)
    assert Path("a.safetensors").read_bytes() == before
