"""`aft sweep`: what it prints, writes and keeps."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cli_cases import TOYS, aft, assert_refused

from aft_harness.results import table
from aft_harness.studies import sweep


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


def common(model: str, folder: Path) -> list[object]:
    tasks = ["--tasks", "toy_choice", "--include-path", TOYS]
    return ["--model", model, "--device", "cpu", *tasks, "--output", folder]


def test_the_commands_write_a_table_and_a_plot(model: str, tmp_path: Path) -> None:
    options = [*common(model, tmp_path / "layers"), "--limit", 6, "--dev-docs", 6, "--epochs", 1]
    result = aft("sweep", "layers", "--layers", "1-2", *options)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "On 6 development documents, where the lowest ranking loss is chosen:"
    shown = {line[:17].strip(): line[17:].strip() for line in lines[1:4]}
    assert [name.replace(" *", "") for name in shown] == ["unchanged model", "layer 1", "layer 2"]
    assert all(score.startswith("ranking loss ") and ", accuracy " in score for score in shown.values())
    assert lines[-3].startswith("* chosen on development documents")
    written = table.read(tmp_path / "layers" / "sweep.csv")
    assert written["layers"].tolist() == ["1", "2"] and written["chosen"].sum() == 1
    (chosen,) = written[written["chosen"] == 1]["booster"]
    assert f"{chosen} *" in shown
    assert set(written["n"]) == {12} and set(written["development_n"]) == {6} and set(written["trained_n"]) == {6}
    assert (tmp_path / "layers" / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    assert str(tmp_path) not in (tmp_path / "layers" / "sweep.csv").read_text()
    assert result.stderr.splitlines()[-1] == (
        f"To look at the results: aft report {tmp_path / 'layers'} -o report.html"
    )
    assert aft("report", tmp_path / "layers", "-o", tmp_path / "r.html").exit_code == 0
    assert f"chose {chosen} among 2" in (tmp_path / "r.html").read_text(encoding="utf-8")
    again = aft("sweep", "layers", "--layers", "1-2", *options, "--format", "json")
    assert again.exit_code == 0, again.stderr
    assert [row["layers"] for row in json.loads(again.stdout)] == ["1", "2"]
    assert "sweep.csv" in again.stderr and "sweep.csv" not in again.stdout

    vector = tmp_path / "layers" / "layer-01.safetensors"
    options = common(model, tmp_path / "strengths")
    command = ["sweep", "strengths", "--vector", vector, *options, "--dev-docs", 6, "--test-docs", "3:9"]
    result = aft(*command, "--strengths", "0,1,2")
    assert result.exit_code == 0, result.stderr
    assert "layer-01 at 2" in result.stdout
    written = table.read(tmp_path / "strengths" / "sweep.csv")
    assert written["strength"].tolist() == [0, 1, 2] and set(written["n"]) == {6}
    for wrong, exit_code, reason in (
        (["--strengths", "0.5,high"], 2, "'--strengths': strengths '0.5,high'"),
        (["--strengths", "1", "--vector", f"{vector}:x"], 2, "'--vector': vector="),
        (["--strengths", "1", "--test-docs", "x"], 2, "'--test-docs': 'x' is not a slice"),
        (["--strengths", "1", "--test-limit", "3"], 2, "cannot be used together"),
        (["--strengths", "1", "--test-docs", "90:99"], 1, "documents 90:99"),
        (["--strengths", "1", "--dev-docs", "0"], 1, "development documents"),
        (["--strengths", "1", "--test-tasks", "toy_choise"], 1, "unknown task 'toy_choise'"),
    ):
        assert_refused(aft(*command, *wrong), exit_code, reason)


def test_layers_follow_the_one_grammar(model: str, tmp_path: Path) -> None:
    options = [*common(model, tmp_path / "s"), "--limit", 2, "--dev-docs", 2, "--epochs", 1, "--test-limit", 2]
    result = aft("sweep", "layers", "--layers", "2-", *options, "--format", "csv")
    assert result.exit_code == 0, result.stderr
    assert {path.name for path in (tmp_path / "s").glob("*.safetensors")} == {
        "layer-02.safetensors",
        "layer-03.safetensors",
    }
    assert_refused(aft("sweep", "layers", "--layers", "3-1", *options), 2, "'--layers': layers '3-1'")
    assert_refused(aft("sweep", "layers", "--layers", "auto", *options), 2, "'--layers': layers 'auto'")
    assert_refused(aft("sweep", "layers", "--layers", "4-8", *options), 1, "layer 4 is out of range")


def test_ctrl_c_says_what_is_kept(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "layers", interrupted)
    result = aft("sweep", "layers", "--layers", "1", *common(model, tmp_path / "s"), "--dev-docs", 6)
    assert result.exit_code == 130
    assert f"finished work is kept in {tmp_path / 's'}; rerun the same command to resume." in result.stderr
    assert os.listdir(tmp_path / "s") == ["scores.sqlite"]
