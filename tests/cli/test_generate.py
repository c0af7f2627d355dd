"""`aft generate`: texts side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_cases import aft, assert_refused
from click.testing import CliRunner

from aft_harness.boosters.booster import Booster
from aft_harness.cli import main


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Booster.static({1: 3 * torch.ones(32)}).save("a.safetensors")


def test_texts_stand_side_by_side_wherever_the_prompt_comes_from(model: str) -> None:
    options = ["generate", "--model", model, "--vector", "a.safetensors", "--max-new-tokens", "6"]
    shown = aft(*options, "The child walks")
    assert shown.exit_code == 0, shown.stderr
    assert [line for line in shown.stdout.splitlines() if line.startswith("== ")] == ["== baseline", "== a.safetensors"]
    Path("prompt.txt").write_text("The child walks")
    assert aft(*options, "--file", "prompt.txt").stdout == shown.stdout
    assert CliRunner().invoke(main, options, input="The child walks").stdout == shown.stdout
    lines = [json.loads(line) for line in aft(*options, "--format", "json", "The child walks").stdout.splitlines()]
    assert [line["variant"] for line in lines] == ["baseline", "a.safetensors"]
    assert lines[0]["text"] != lines[1]["text"]


def test_bad_input_is_one_line(model: str) -> None:
    common = ["generate", "--model", model]
    Path("binary").write_bytes(b"\xff\xfe\xff")
    for arguments, code, reason in (
        (["x", "--file", "binary"], 2, "cannot be used together"),
        (["x", "--system-instruction", "y"], 2, "--system-instruction needs --chat"),
        (["x", "--chat"], 1, "has no chat template"),
        (["--file", "binary"], 1, "binary: cannot be read as text"),
        (["--file", "nowhere"], 2, "nowhere"),
        (["x", "--max-new-tokens", "0"], 2, "'--max-new-tokens'"),
        (["x", "--max-new-tokens", "999"], 1, "more than the model's 256 positions"),
        (["x", "--vector", "nowhere.safetensors"], 1, "no such booster"),
    ):
        assert_refused(aft(*common, *arguments), code, reason)
