"""`aft transfer`: the same study as in Python, from a file or from options."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cli_cases import TOYS, aft, assert_refused
from click.testing import Result
from pool_cases import Pool, undated
from study_cases import study_file

from aft_harness.harness import evaluation
from aft_harness.harness.score_store import ScoreStore
from aft_harness.results import leaderboard, table
from aft_harness.studies import ray_pool, transfer
from aft_harness.studies.cells import Work
from aft_harness.studies.plan import Plan
from aft_harness.studies.workers import Place, Workers
from aft_harness.training import train as training


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


@pytest.fixture
def plan(checkpoint: str, tmp_path: Path) -> Path:
    return study_file(tmp_path, checkpoint)


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


def test_a_place_is_refused_before_anything_costs_time(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options, exit_code, reason in (
        (["--on", "slurm"], 2, "'slurm': expected ray, ray://HOST[:PORT] or local:N, such as local:2"),
        (["--on", "local:0"], 2, "'local:0': expected ray"),
    ):
        assert_refused(run(plan, tmp_path / "work", *options), exit_code, reason)
    elsewhere = ["transfer", plan, "--folder", "memory://work", "--to", tmp_path / "l.csv"]
    assert_refused(aft(*elsewhere), 2, "memory://work: an address needs --on")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert_refused(run(plan, tmp_path / "work", "--on", "local:2"), 1, "pip install 'aft-harness[ray]'")
    assert_refused(aft(*elsewhere, "--on", "ray://h"), 1, "ray://h needs Ray: pip install 'aft-harness[ray]'")


def test_cells_elsewhere_make_the_same_leaderboard(plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[str] = []

    @contextmanager
    def opened(place: Place, work: Work, workers: Workers) -> Iterator[Pool]:
        places.append(str(place))
        pool = Pool(work, 2)
        yield pool
        pool.close()

    monkeypatch.setattr(Place, "check_installed", lambda self: None)
    monkeypatch.setattr(ray_pool, "opened", opened)
    assert run(plan, tmp_path / "here").exit_code == 0
    there = run(plan, tmp_path / "there", "--on", "local:2")
    assert there.exit_code == 0, there.stderr
    assert places == ["local:2"]
    assert undated(tmp_path / "there.csv") == undated(tmp_path / "here.csv")
    assert "toy_choice: 23 training documents from train[0:24]" in there.stderr
    made = aft("report", tmp_path / "there", "-o", tmp_path / "report.html")
    assert made.exit_code == 0, made.stderr
    # A folder elsewhere is no source of a report; the table is.
    far = aft("transfer", plan, "--on", "ray", "--folder", f"memory://{tmp_path.name}", "--to", tmp_path / "far.csv")
    assert far.exit_code == 0, far.stderr
    assert far.stderr.splitlines()[-1].endswith(f"aft report {tmp_path / 'far.csv'} -o report.html")
    assert undated(tmp_path / "far.csv") == undated(tmp_path / "here.csv")
    broken = Plan.read(plan)
    monkeypatch.setattr(Plan, "read", lambda path, models: replace(broken, models=({"pretrained": "no/such"},)))
    failed = run(plan, tmp_path / "none", "--on", "local:2")
    assert_refused(failed, 1, "1 cell failed 3 times, first load such: ")
    assert failed.stderr.count("trying again") == 2
