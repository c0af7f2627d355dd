"""`aft evaluate` and `aft compare`: paired tables in every form, and lm-eval's own files."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from cli_cases import TOYS, aft, assert_refused
from click.testing import Result
from lm_eval import evaluator

import aft_harness
from aft_harness.boosters.booster import Booster
from aft_harness.harness.score_store import ScoreStore
from aft_harness.results import table


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for layer, name in ((1, "a"), (2, "b")):
        vector = 4 * torch.randn(32, generator=torch.Generator().manual_seed(layer))
        Booster.static({layer: vector}, {"method": "aft"}).save(f"{name}.safetensors")
    return tmp_path


def evaluate(model: str, *arguments: object, tasks: str = "toy_choice") -> Result:
    common = ["--model", model, "--tasks", tasks, "--include-path", TOYS, "--device", "cpu"]
    return aft("evaluate", *common, *arguments)


def test_every_form_prints_the_same_rows(model: str, in_tmp: Path) -> None:
    options = ["--vector", "a.safetensors", "--vector", "b.safetensors:0.5", "--limit", "6", "--use-cache", "c.sqlite"]
    found = {form: evaluate(model, *options, "--format", form) for form in table.FORMS}
    assert all(result.exit_code == 0 for result in found.values()), found["table"].stderr
    frame = table.to_frame(json.loads(found["json"].stdout))
    assert frame["booster"].tolist() == ["a.safetensors", "b.safetensors:0.5"]
    assert frame["strength"].tolist() == [1, 0.5] and set(frame["n"]) == {6}
    Path("read.csv").write_text(found["csv"].stdout)
    pd.testing.assert_frame_equal(table.read(Path("read.csv")), frame)
    assert found["md"].stdout.startswith("| model | booster | strength |") and found["md"].stdout.count("\n") == 4
    assert found["table"].stdout == table.render(frame, "table") + "\n" == evaluate(model, *options).stdout
    # The same as Python computes, and what --csv writes.
    ours = aft_harness.evaluate(
        model,
        tasks="toy_choice",
        boosters=["a.safetensors", "b.safetensors:0.5"],
        limit=6,
        include_path=[TOYS],
        model_args={"device": "cpu"},
    )
    assert str(ours) == found["table"].stdout.removesuffix("\n")
    assert evaluate(model, *options, "--csv", "t.csv").exit_code == 0
    pd.testing.assert_frame_equal(table.read(Path("t.csv")).drop(columns="date"), frame.drop(columns="date"))
    assert str(in_tmp) not in Path("t.csv").read_text()


def test_output_folders_are_named_after_the_boosters(model: str, in_tmp: Path) -> None:
    Path("deep").mkdir()
    Booster.load("b.safetensors").save("deep/a.safetensors")
    vectors = ["a.safetensors", "deep/a.safetensors", "b.safetensors:0.5", "a.safetensors+b.safetensors:2"]
    options = [word for vector in vectors for word in ("--vector", vector)]
    result = evaluate(model, *options, "--limit", "2", "--output", "out", "--format", "csv")
    assert result.exit_code == 0, result.stderr
    folders = {path.name for path in Path("out").iterdir()}
    assert folders == {"baseline", "a", "a-2", "b-0.5", "a+b-2"}
    assert all(len(list((Path("out") / name).rglob("results_*.json"))) == 1 for name in folders)
    names = pd.read_csv(io.StringIO(result.stdout))["booster"].tolist()
    assert names == ["a.safetensors", "a.safetensors (2)", "a.safetensors+b.safetensors:2", "b.safetensors:0.5"]
    assert result.stderr.splitlines()[-1] == "To look at the results: aft report out --samples -o report.html"
    assert aft("report", "out", "--samples", "-o", "report.html").exit_code == 0
    # What was written pairs up again.
    added = aft("leaderboard", "add", "out", "--to", "l.csv")
    assert added.exit_code == 0 and "4 rows added" in added.stdout, added.output


@pytest.mark.parametrize("confirmed", [False, True])
def test_the_confirmation_of_unsafe_code_reaches_lm_eval(
    confirmed: bool, model: str, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = evaluator.evaluate

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["confirm_run_unsafe_code"])
        return real(*args, **kwargs)

    monkeypatch.setattr(evaluator, "evaluate", spy)
    options = ["--vector", "a.safetensors", "--limit", "1", *(["--confirm-run-unsafe-code"] if confirmed else [])]
    assert evaluate(model, *options).exit_code == 0
    assert seen == [confirmed] * 2


def test_a_task_that_cannot_be_compared_is_named(model: str, in_tmp: Path) -> None:
    result = evaluate(model, "--vector", "a.safetensors", "--limit", "2", tasks="toy_choice,toy_rolling")
    assert result.exit_code == 0, result.stderr
    assert "not compared, because no metric has one value per document: toy_rolling" in result.stderr
    assert "toy_rolling" not in result.stdout


def test_an_interrupted_evaluation_says_where_it_resumes(
    model: str, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ScoreStore, "put", interrupted)
    result = evaluate(model, "--vector", "a.safetensors", "--use-cache", "c.sqlite")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == (
        "Interrupted: finished work is kept in c.sqlite; rerun the same command to resume."
    )


def test_bad_input_is_one_line(model: str, in_tmp: Path) -> None:
    for arguments, exit_code, reason in (
        (["--vector", "nowhere.safetensors"], 1, "nowhere.safetensors: no such booster"),
        (["--vector", "a.safetensors:x"], 2, "strength 'x' is not a number"),
        (["--vector", "a.safetensors", "--docs", "3"], 2, "'--docs': '3' is not a slice of documents"),
        (["--vector", "a.safetensors", "--docs", "3:5", "--limit", "2"], 2, "cannot be used together"),
        (["--vector", "a.safetensors", "--docs", "90:99"], 1, "documents 90:99: task toy_choice has no documents"),
        (["--vector", "a.safetensors", "--format", "xml"], 2, "'--format'"),
        (["--vector", "a.safetensors", "--limit", "0"], 2, "'--limit'"),
        (["--vector", "a.safetensors", "--batch-size", "many"], 2, "'--batch-size': 'many' is neither a number"),
        (["--vector", "a.safetensors", "--batch-size", "0"], 2, "'--batch-size': '0' is neither a number"),
        (["--vector", "a.safetensors", "--tasks", "toy_choise"], 1, "unknown task 'toy_choise'"),
        (["--vector", "a.safetensors", "--csv", "a.safetensors/t.csv"], 2, "is not a writable folder"),
        ([], 2, "Missing option '--vector'"),
    ):
        assert_refused(evaluate(model, *arguments), exit_code, reason)


def test_compare_pairs_two_folders(in_tmp: Path) -> None:
    for name, outcomes in (("a", [0, 0, 0, 0, 0, 0, 1]), ("b", [1, 1, 1, 1, 1, 1, 0])):
        (in_tmp / name).mkdir()
        same = {"prompt_hash": "p", "target_hash": "t", "filter": "none", "metrics": ["acc"]}
        lines = [{**same, "doc_id": i, "doc_hash": f"{i}", "acc": outcome} for i, outcome in enumerate(outcomes)]
        (in_tmp / name / "samples_x_2026-01-01.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = aft("compare", "a", "b", "--task", "x", "--docs", "0:6")
    # Six gained and none lost: 2 / 2**6 by the definition of the exact test.
    assert "x acc, documents 0:6: n = 6, 0.0% -> 100.0%, +100.0 points" in result.stdout
    assert "gained 6, lost 0, exact McNemar p = 0.031" in result.stdout
    for arguments, exit_code in (
        (["a", "nowhere"], 1),
        (["a", "b", "--metric", "f1"], 1),
        (["a", "b", "--docs", "x"], 2),
    ):
        failed = aft("compare", *arguments, "--task", "x")
        assert_refused(failed, exit_code, "")
        assert exit_code == 2 or failed.stderr.count("\n") == 1


def test_a_dry_run_says_what_an_evaluation_will_take_and_writes_nothing(model: str, in_tmp: Path) -> None:
    before = set(in_tmp.iterdir())
    options = ["--vector", "a.safetensors", "--vector", "b.safetensors", "--output", "out", "--csv", "table.csv"]
    result = evaluate(model, *options, "--limit", "4", "--dry-run")
    assert result.exit_code == 0, result.stderr
    work, memory, time = result.stdout.splitlines()
    assert work == "work    12 loglikelihoods"
    assert memory.startswith("memory  about ") and "weights 0.00" in memory
    assert time.startswith("time    about ") and time.endswith("and loading the model")
    assert set(in_tmp.iterdir()) == before
    assert_refused(evaluate(model, "--vector", "a.safetensors", "--dry-run", "--batch-size", "auto"), 1, "auto")
    assert_refused(
        evaluate(model, "--vector", "a.safetensors", "--dry-run", "--pairs", "p.jsonl"), 2, "cannot be used together"
    )
