"""The stock `lm_eval` command with boosters that `aft` makes, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_cases import TOYS, bad_boosters, train

from aft_harness.boosters.booster import Booster
from aft_harness.results.pairing import compare_samples, read_samples


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stock_lm_eval(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # Only the installed bridge can tell it of steered-hf.
    command = [sys.executable, "-m", "lm_eval", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=200)


def test_the_stock_cli_evaluates_a_booster(model: str, in_tmp: Path) -> None:
    assert train(model, "--limit", "12", "--epochs", "3", "--lr", "0.5").exit_code == 0
    common = ["--model", "steered-hf", "--tasks", "toy_choice", "--include_path", TOYS, "--batch_size", "4"]
    common += ["--device", "cpu", "--log_samples"]
    arguments = {"base": f"pretrained={model}", "steered": f"pretrained={model},vector=a.safetensors:2,scale=0.5"}
    for (name, model_args), run in zip(arguments.items(), ([], ["run"]), strict=True):
        done = stock_lm_eval(*run, *common, "--model_args", model_args, "--output_path", name, cwd=in_tmp)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "toy_choice" in done.stdout
    written = next((in_tmp / "steered").rglob("results_*.json")).read_text()
    assert json.loads(written)["config"]["aft"]["booster_sha256"] == Booster.load("a.safetensors").sha256
    base, steered = (read_samples(in_tmp / name, "toy_choice") for name in ("base", "steered"))
    assert compare_samples(base, steered, "acc").n == 12
    assert any(base[key]["filtered_resps"] != steered[key]["filtered_resps"] for key in base)


def test_the_stock_cli_ends_with_the_reason(model: str, in_tmp: Path) -> None:
    # One process for all: the message is the exception's, and lm_eval's own CLI prints whatever exception is raised.
    cases = bad_boosters(in_tmp)
    code = (
        "import json, sys, traceback\n"
        "from lm_eval.api.registry import get_model\n"
        "for vector in json.loads(sys.argv[1]):\n"
        "    try:\n"
        f"        get_model('steered-hf').create_from_arg_obj({{'pretrained': {model!r}, 'vector': vector}}, {{}})\n"
        "    except Exception:\n"
        "        print(json.dumps(traceback.format_exc().strip().splitlines()[-1]))\n"
    )
    command = [sys.executable, "-c", code, json.dumps(list(cases))]
    done = subprocess.run(command, cwd=in_tmp, capture_output=True, text=True, check=False, timeout=200)
    last_lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(last_lines) == len(cases), done.stderr[-2000:]
    for reason, line in zip(cases.values(), last_lines, strict=True):
        assert reason in line and line.startswith("aft_harness.errors.")
    done = stock_lm_eval(
        *("--model", "steered-hf", "--model_args", f"pretrained={model},vector=nan.safetensors"),
        *("--tasks", "toy_choice", "--include_path", TOYS),
        cwd=in_tmp,
    )
    assert done.returncode != 0
    assert "nan.safetensors: layers.1.vector contains NaN" in done.stderr.strip().splitlines()[-1]
