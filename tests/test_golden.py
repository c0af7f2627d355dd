"""What trainings, scores and studies gave when this file was written: a change that is meant to move code moves none.

Everything goes through the command line and the stock lm-eval, so that this test need not change with the inside. The
toy model computes in float64, whose rounding no printed digit and no float32 booster shows: the record holds on other
machines too. All layers are trained and no texts kept, as the default was when the record began: such texts are drawn
at random, and need not be the same everywhere. `python tests/test_golden.py --write` writes the record anew; say in the
commit why it changed.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
import yaml
from click.testing import CliRunner
from conftest import make_tiny_model, make_tiny_tokenizer
from safetensors import safe_open

from aft_harness.cli import main

HERE = Path(__file__).parent
TOYS = str(HERE / "toy_tasks")
RECORD = HERE / "golden" / "toy.json"
LEADERBOARD = HERE / "golden" / "leaderboard.csv"
UNLIKE = ["revision", "lm_eval", "aft_harness", "date"]
"""Columns of a leaderboard that follow versions and dates."""

TRAININGS = {
    "default": ["--tasks", "toy_choice", "--limit", "8"],
    "one layer": ["--tasks", "toy_choice", "--layer", "1", "--recipe", "original", "--dev-docs", "4", "--limit", "8"],
    "contextual": ["--tasks", "toy_choice", "--kind", "contextual", "--layer", "1,2", "--lr", "0.02", "--limit", "8"],
    "mixture": ["--tasks", "toy_choice,toy_text", "--limit", "6", "--weight", "toy_text=2", "--objective", "choice"],
    "shots": ["--tasks", "toy_choice", "--num-fewshot", "2", "--limit", "6", "--choice-norm", "characters"],
    "two right": ["--tasks", "toy_two_right", "--limit", "6", "--temperature", "2"],
    "started": ["--tasks", "toy_blanks", "--limit", "6", "--start", "FOLDER/default.safetensors:0.5", "--seed", "3"],
}


def checkpoint(folder: Path) -> str:
    """A GPT-2 whose weights come from numpy, which draws the same numbers everywhere."""
    model = make_tiny_model("gpt2")
    generator = np.random.default_rng(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.from_numpy(generator.standard_normal(tuple(parameter.shape)))
            parameter.copy_(0.2 * drawn + (1.0 if "ln_" in name and name.endswith("weight") else 0.0))
    model.save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def aft(*arguments: str) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.stderr


def header(path: Path) -> tuple[str, dict[str, Any]]:
    """The identity of a booster file, computed from its bytes as docs/booster-format.md defines it, and provenance."""
    import hashlib

    digest = hashlib.sha256()
    with safe_open(path, framework="np") as file:
        told = json.loads(file.metadata()["aft"])
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            digest.update(f"{name}\0{list(tensor.shape)}\0".encode() + tensor.astype("<f4").tobytes())
    digest.update(json.dumps(told["injections"], sort_keys=True, separators=(",", ":")).encode())
    return digest.hexdigest(), told["provenance"]


def trainings(model: str, folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for name, options in TRAININGS.items():
        path = folder / f"{name.replace(' ', '-')}.safetensors"
        common = ["--model", model, "--dtype", "float64", "--device", "cpu", "--include-path", TOYS]
        options = [option.replace("FOLDER", str(folder)) for option in options]
        if "--layer" not in options:
            options += ["--layers", "all"]
        aft("train", *common, *options, "--keep", "0", "--epochs", "2", "--output", str(path))
        sha256, provenance = header(path)
        found[name] = {
            "booster_sha256": sha256,
            "training_sha256": provenance["training_sha256"],
            "epoch_losses": [f"{loss:.9f}" for loss in provenance["epoch_losses"]],
        }
    return found


def scores(model: str, folder: Path) -> dict[str, list[str]]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    found = {}
    for packing in ("on", "off"):
        for vector in (None, str(folder / "default.safetensors")):
            results = simple_evaluate(
                model="steered-hf",
                model_args={"pretrained": model, "dtype": "float64", "packing": packing, "vector": vector, "scale": 2},
                tasks=["toy_choice", "toy_text"],
                task_manager=TaskManager(include_path=TOYS),
                num_fewshot=1,
                bootstrap_iters=0,
                batch_size=4,
                device="cpu",
            )
            name = f"packing {packing}, {'default' if vector else 'no booster'}"
            found[name] = [
                f"{score:.9f} {greedy}"
                for sample in results["samples"]["toy_choice"]
                for score, greedy in sample["filtered_resps"]
            ] + [text for sample in results["samples"]["toy_text"] for text in sample["filtered_resps"]]
    return found


def study(model: str, folder: Path) -> str:
    plan = {
        "models": [{"pretrained": model, "dtype": "float64", "device": "cpu", "batch_size": 4}],
        "train": {"toy_choice": None, "both": {"toy_choice": {"limit": 4}, "toy_text": {"limit": 4, "weight": 2.0}}},
        "evaluate": {"toy_choice": None, "toy_text": {"docs": "0:6", "seeds": [0]}, "toy_blanks": {"limit": 7}},
        "layers": [[1], "all"],
        "seeds": [0, 1],
        "recipe": {"epochs": 1, "lr": 0.3, "keep": 0},
        "include_path": [TOYS],
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    where = ["--folder", str(folder / "work"), "--to", str(folder / "leaderboard.csv")]
    aft("transfer", str(folder / "plan.yaml"), *where)
    # As text, so that no digit of a number is lost or gained.
    table = pd.read_csv(folder / "leaderboard.csv", dtype=str, keep_default_na=False)
    return table.drop(columns=UNLIKE).to_csv(index=False)


def made(folder: Path) -> tuple[dict[str, Any], str]:
    """What today's code makes of the toys: the record, and the leaderboard."""
    model = checkpoint(folder / "golden-gpt2")
    record = {
        "transformers": transformers.__version__,
        "trainings": trainings(model, folder),
        "scores": scores(model, folder),
    }
    return record, study(model, folder)


@pytest.fixture(scope="module")
def today(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    return made(tmp_path_factory.mktemp("golden"))


def test_trainings_make_the_same_boosters(today: tuple[dict[str, Any], str]) -> None:
    record, expected = today[0], json.loads(RECORD.read_text())
    if record["transformers"] != expected["transformers"]:  # its configurations are part of a model's identity
        for training in (*record["trainings"].values(), *expected["trainings"].values()):
            del training["training_sha256"]
    assert record["trainings"] == expected["trainings"]


def test_scores_are_the_same(today: tuple[dict[str, Any], str]) -> None:
    assert today[0]["scores"] == json.loads(RECORD.read_text())["scores"]


def test_a_study_makes_the_same_leaderboard(today: tuple[dict[str, Any], str]) -> None:
    assert today[1] == LEADERBOARD.read_text()


if __name__ == "__main__":
    assert sys.argv[1:] == ["--write"], __doc__
    os.chdir(HERE)
    with tempfile.TemporaryDirectory() as work:
        written, table = made(Path(work))
    RECORD.write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")
    LEADERBOARD.write_text(table)
