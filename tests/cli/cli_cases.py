"""How tests run commands, and the files that every command must refuse."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from click.testing import CliRunner, Result

from aft_harness.boosters.booster import Booster
from aft_harness.cli import main

TOYS = str(Path(__file__).parents[1] / "toy_tasks")


def aft(*arguments: object) -> Result:
    """Runs `aft` in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def train(model: str, *arguments: object, tasks: str = "toy_choice", output: str = "a.safetensors") -> Result:
    """Runs `aft train` on toy tasks."""
    return aft("train", "--model", model, "--tasks", tasks, "--include-path", TOYS, "--output", output, *arguments)


def assert_refused(result: Result, exit_code: int, reason: str) -> None:
    """Asserts that a command ended with one line that says why, and no traceback."""
    assert result.exit_code == exit_code, result.output
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("Error:") and reason in last, last
    assert "Traceback" not in result.output and result.stdout == ""


def bad_boosters(folder: Path) -> dict[str, str]:
    """Writes files that cannot be used, by what `vector=` would say, each with the reason."""
    good = Booster.static({1: torch.ones(32)})
    good.save(folder / "good.safetensors")
    (folder / "pickle.safetensors").write_bytes(pickle.dumps({"a": 1}))
    (folder / "empty.safetensors").touch()
    Booster.static({1: torch.ones(8)}).save(folder / "narrow.safetensors")
    Booster.static({7: torch.ones(32)}).save(folder / "deep.safetensors")
    nan = (folder / "good.safetensors").read_bytes()
    (folder / "nan.safetensors").write_bytes(nan[:-4] + b"\x00\x00\xc0\x7f")
    (folder / "negative.safetensors").write_bytes(nan.replace(b'\\"1\\":', b'\\"-\\":'))
    return {
        "nowhere.safetensors": "nowhere.safetensors: no such booster file",
        "pickle.safetensors": "pickle.safetensors: not a safetensors file",
        "empty.safetensors": "empty.safetensors: not a safetensors file",
        "narrow.safetensors": "hidden size of 8",
        "deep.safetensors": "layer 7 is out of range",
        "nan.safetensors": "nan.safetensors: layers.1.vector contains NaN",
        "negative.safetensors": "negative.safetensors: layer '-' is out of range",
        "good.safetensors:x": "strength 'x' is not a number",
    }
