"""`aft transfer`: the same study as in Python, from a file or from options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from cli_cases import TOYS, aft, assert_refused
from click.testing import Result

from aft_harness.harness import evaluation
from aft_harness.harness.score_store import ScoreStore
from aft_harness.results import leaderboard, table
from aft_harness.studies import transfer
from aft_harness.studies.plan import Plan
from aft_harness.training import train as training


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


@pytest.fixture
def plan(checkpoint: str, tmp_path: Path) -> Path:
    content = {
        "models": [{"pretrained": checkpoint, "device": "cpu", "batch_size": 4}],
        "train": {"toy_choice": None, "both": {"toy_choice": {"limit": 4}, "toy_text": {"limit": 4, "weight": 2.0}}},
        "evaluate": {"toy_choice": None, "toy_text": {"docs": "0:6", "seeds": [0]}},
        "layers": [[1]],
        "seeds": [0, 1],
        "recipe": {"epochs": 1, "lr": 0.3, "rate_unit": "absolute"},
        "include_path": [TOYS],
    }
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def run(plan: Path, folder: Path, *options: object) -> Result:
    return aft("transfer", plan, "--folder", folder, "--to", folder.parent / f"{folder.name}.csv", *options)


def test_the_command_runs_the_study_that_python_runs_and_never_twice(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / "map.png", tmp_path / "map.svg", tmp_path / "l.md"]
    options = ["--heat-map", files[0], "--heat-map", files[1], "--markdown", files[2]]
    first = run(plan, tmp_path / "work", *options)
    assert first.exit_code == 0, first.stderr
    found = leaderboard.load(tmp_path / "work.csv")
    ours = transfer.run(Plan.read(plan), tmp_path / "python", tmp_path / "python.csv")
    pd.testing.assert_frame_equal(found.drop(columns="date"), ours.drop(columns="date"))
    assert len(found) == 2 * 3 + 2 and len(list((tmp_path / "work/boosters").iterdir())) == 4
    # Printed are the rows that p-values are corrected for.
    assert first.stdout == table.render(found[found["p_holm"].notna()], "table") + "\n"
    assert "toy_choice: 23 training documents from train[0:24]" in first.stderr
    assert files[2].read_text() == table.render(found, "md") + "\n"
    last = first.stderr.splitlines()[-1]
    assert last == f"To look at the results: aft report {tmp_path / 'work'} {tmp_path / 'work.csv'} -o report.html"
    made = aft("report", tmp_path / "work", tmp_path / "work.csv", "-o", tmp_path / "report.html")
    assert made.exit_code == 0 and "toy_choice" in (tmp_path / "report.html").read_text(), made.stderr
    assert all(path.stat().st_size > 500 for path in files)
    before = {path: path.read_bytes() for path in [tmp_path / "work.csv", *files]}
    for module, name in ((training, "train"), (evaluation, "evaluate")):
        monkeypatch.setattr(module, name, lambda *args, **kwargs: pytest.fail("done twice"))
    again = run(plan, tmp_path / "work", *options)
    assert again.exit_code == 0, again.stderr
    assert {path: path.read_bytes() for path in before} == before and again.stdout == first.stdout
    printed = json.loads(run(plan, tmp_path / "work", "--format", "json").stdout)
    assert [row["p_holm"] for row in printed] == found["p_holm"].dropna().tolist()


def test_an_interrupted_study_says_how_to_resume(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ScoreStore, "put", interrupted)
        result = run(plan, tmp_path / "work")
    assert result.exit_code == 130
    assert f"finished work is kept in {tmp_path / 'work'}; rerun the same command to resume." in result.stderr
    kept = {path: path.read_bytes() for path in (tmp_path / "work" / "boosters").iterdir()}
    assert len(kept) == 4 and not (tmp_path / "work.csv").exists()
    assert run(plan, tmp_path / "work").exit_code == 0
    assert {path: path.read_bytes() for path in kept} == kept and (tmp_path / "work.csv").is_file()


def test_a_dry_run_prints_what_is_left(plan: Path, tmp_path: Path) -> None:
    result = run(plan, tmp_path / "work", "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("about") == 7 and not (tmp_path / "work.csv").exists()
    assert run(plan, tmp_path / "work").exit_code == 0
    after = run(plan, tmp_path / "work", "--dry-run")
    assert after.stdout.count("done") == 6 and "about 0.0 min in all" in after.stdout


def test_small_studies_need_no_file(checkpoint: str, tmp_path: Path) -> None:
    common = ["--folder", tmp_path / "w", "--to", tmp_path / "l.csv", "--include_path", TOYS]
    small = ["--model", checkpoint, "--train", "toy_choice", "--evaluate", "toy_choice=0:5", "--layers", "1-2"]
    done = aft("transfer", *common, *small, "--train-limit", "4")
    assert done.exit_code == 0, done.stderr
    found = leaderboard.load(tmp_path / "l.csv")
    assert (found["n"].tolist(), found["layers"].tolist(), found["trained_n"].tolist()) == ([5], ["1-2"], [4])
    for wrong, exit_code, reason in (
        (small[:2], 2, "give a PLAN or --train"),
        (small[2:], 2, "give a PLAN or --model"),
        ([*small, "--seeds", "x"], 2, "'--seeds': x: expected whole numbers"),
        ([*small, "--layers", "some"], 2, "'--layers': layers 'some'"),
        ([*small, "--evaluate", "toy_text=5"], 2, "'5' is not a slice of documents"),
        ([*small, "--heat-map", tmp_path / "map.pdf"], 1, "must end in .png or .svg"),
        ([*small, "--markdown", tmp_path / "no" / "l.md"], 2, "is not a folder"),
        ([*small, "--to", tmp_path / "no" / "l.csv"], 2, "is not a folder"),
    ):
        assert_refused(aft("transfer", *common, *wrong), exit_code, reason)


def test_a_plan_that_is_none_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("models: [m]\ntrain: [a]\nevaluate: {b: 5}\n")
    result = run(path, tmp_path / "work")
    assert_refused(result, 1, f"{path}: evaluate: b: expected any of")
    assert result.stderr.count("\n") == 1
    assert_refused(run(tmp_path / "nowhere.yaml", tmp_path / "work"), 2, "nowhere.yaml")
