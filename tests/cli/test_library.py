"""`aft list`, `pull`, `push` and `verify`, as they are typed, against a hub on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_cases import TOYS, aft, assert_refused
from hub_cases import Hub, environment, use
from library_cases import booster, row, written

import aft_harness
from aft_harness.boosters import catalogue
from aft_harness.boosters.booster import Booster

BOOSTER = booster()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    BOOSTER.save("arc.safetensors")
    written(Path("l.csv"), row(BOOSTER), row(BOOSTER, "toy_other", 0.0, p_value=1.0))
    return tmp_path


def test_publish_find_and_use(here: Path, loopback_hub: Hub) -> None:
    pushed = aft("push", "arc.safetensors", "--to", "me/arc", "--leaderboard", "l.csv")
    assert pushed.exit_code == 0, pushed.output
    assert "vector=hf://me/arc/arc.safetensors" in pushed.stdout and "claims  2" in pushed.stdout
    found = aft("list", "--hub", "--search", "arc")
    assert "hf://me/arc" in found.stdout and "+12.5 points [+7.5, +17.5] *" in found.stdout
    pulled = aft("pull", "hf://me/arc")
    assert pulled.exit_code == 0 and "vector=me/arc" in pulled.stdout and pulled.stderr == ""
    listed = aft("list", "--search", "me/").stdout.splitlines()
    assert listed[0].split() == ["name", "model", "layers", "trained", "on", "gain", "size"] and len(listed) == 2
    (entry,) = json.loads(aft("list", "--json", "--search", "me/arc").stdout)
    assert entry["sha256"] == BOOSTER.sha256 and entry["origin"].startswith("hf://me/arc/arc.safetensors ")
    assert aft("show", "me/arc").stdout.splitlines()[0].split() == ["booster", "me/arc"]
    assert "already up to date" in aft("pull", "me/arc").stdout
    # A booster of the library takes its rows along when it is published elsewhere.
    again = aft("push", "me/arc", "--to", "me/copy")
    assert again.exit_code == 0 and "claims  2" in again.stdout


def test_a_dry_run_prints_the_card_and_asks_nobody(here: Path, loopback_hub: Hub) -> None:
    done = aft("push", "arc.safetensors", "--to", "me/arc", "--leaderboard", "l.csv", "--dry-run")
    assert done.exit_code == 0 and done.stdout.startswith("---\nbase_model: m/n\n")
    assert "better: acc 50.0% to 62.5%" in done.stdout and loopback_hub.requests == []
    silent = aft("push", "arc.safetensors", "--to", "me/arc", "--dry-run")
    assert "the card will claim nothing" in silent.stderr and "nothing is claimed" in silent.stdout


def test_what_is_refused_is_one_line(
    here: Path, loopback_hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    to = ("--to", "me/arc")
    assert_refused(aft("push", "arc.safetensors:0.5", *to), 2, "`aft mix arc.safetensors:0.5 -o FILE.safetensors`")
    assert_refused(aft("push", "arc.safetensors", "--to", "me/../x"), 2, "is not the name of a repository")
    assert_refused(aft("push", "nowhere.safetensors", *to), 1, "nowhere.safetensors: no such booster file")
    assert_refused(aft("push", "arc.safetensors", *to, "--leaderboard", "arc.safetensors"), 1, "cannot be read")
    assert aft("push", "arc.safetensors").exit_code == 2
    assert_refused(aft("pull", "hf://me/arc"), 1, "no repository me/arc")
    assert_refused(aft("pull", "hf://me/../arc"), 2, "'me/..' is not the name of a repository")
    assert_refused(aft("pull", "hf://me/arc", "--name", "../x"), 2, "cannot be a booster's name")
    assert_refused(aft("pull", "nothing"), 1, "nothing: no booster of this name; give hf://owner/repo")
    assert_refused(aft("verify", "nothing"), 1, "nothing: no such booster")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert_refused(aft("push", "arc.safetensors", *to), 1, "the hub does not accept the token")
    use(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    for command in (["push", "arc.safetensors", *to], ["pull", "hf://me/arc"], ["list", "--hub"]):
        assert_refused(aft(*command), 1, "http://127.0.0.1:9 cannot be reached")
    assert not list(tmp_path.rglob("*.aft-tmp*")) and list(catalogue.entries()) == [
        entry for entry in catalogue.entries() if entry.bundled
    ]


def test_an_empty_library_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFT_HOME", str(tmp_path))
    monkeypatch.setattr(catalogue, "BUNDLED", tmp_path / "none")
    done = aft("list")
    assert (done.exit_code, done.stdout) == (0, "") and "`aft pull hf://owner/repo` fetches one" in done.stderr


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


@pytest.fixture(scope="module")
def trained(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A booster, and a leaderboard of it as `aft evaluate --csv` writes it."""
    folder = tmp_path_factory.mktemp("trained")
    with aft_harness.opened(model, device="cpu") as lm:
        base = lm.base_model.model_dump()
    vector = 4 * torch.randn(32, generator=torch.Generator().manual_seed(1))
    Booster.static({1: vector}, {"base_model": base}).save(folder / "toy.safetensors")
    common = ["--model", model, "--tasks", "toy_choice", "--include-path", TOYS, "--device", "cpu"]
    done = aft("evaluate", *common, "--vector", folder / "toy.safetensors", "--csv", folder / "l.csv")
    assert done.exit_code == 0, done.output
    return folder


def test_verify(loopback_hub: Hub, model: str, trained: Path) -> None:
    pushed = aft("push", trained / "toy.safetensors", "--to", "me/toy", "--leaderboard", trained / "l.csv")
    assert pushed.exit_code == 0, pushed.output
    common = ["--model", model, "--include-path", TOYS, "--device", "cpu"]
    held = aft("verify", "hf://me/toy", *common)
    assert held.exit_code == 0 and "1 of 1 claims hold" in held.stderr, held.output
    assert "same documents, equal scores" in held.stdout
    (verdict,) = json.loads(aft("verify", "hf://me/toy", *common, "--limit", 6, "--json").stdout)
    assert verdict["found"]["n"] == 6 and verdict["claim"]["n"] == 12
    boast = trained / "boast.csv"
    lines = (trained / "l.csv").read_text().splitlines()
    names, cells = lines[0].split(","), lines[1].split(",")
    cells[names.index("steered")] = str(float(cells[names.index("steered")]) + 0.5)
    boast.write_text("\n".join([lines[0], ",".join(cells)]) + "\n")
    assert aft("push", trained / "toy.safetensors", "--to", "me/boast", "--leaderboard", boast).exit_code == 0
    refuted = aft("verify", "hf://me/boast", *common)
    assert refuted.exit_code == 1 and "does not hold" in refuted.stdout and "0 of 1 claims hold" in refuted.stderr
    assert_refused(aft("verify", "hf://me/toy"), 1, "its base model is no model of the hub")


def test_the_stock_lm_eval_and_the_commands_use_the_hub_of_the_environment(
    loopback_hub: Hub, model: str, trained: Path, tmp_path: Path
) -> None:
    assert aft("push", trained / "toy.safetensors", "--to", "me/toy").exit_code == 0
    vector = "hf://me/toy/toy.safetensors+me/toy:0.5"
    for words in (
        ["aft_harness", "pull", "hf://me/toy"],
        [
            *("lm_eval", "run", "--model", "steered-hf", "--model_args", f"pretrained={model},vector={vector}"),
            *("--include_path", TOYS, "--tasks", "toy_choice", "--limit", "2", "--output_path", str(tmp_path / "out")),
        ],
    ):
        given = environment(loopback_hub.url, tmp_path / "own")
        command = [sys.executable, "-m", *words]
        done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    (results,) = (tmp_path / "out").rglob("results_*.json")
    record = json.loads(results.read_text())["config"]["aft"]
    both = 1.5 * Booster.load(trained / "toy.safetensors").tensors["layers.1.vector"]
    assert record["booster_sha256"] == Booster.static({1: both}).sha256
