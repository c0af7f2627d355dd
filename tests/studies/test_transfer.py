from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

from aft_harness.boosters.booster import Booster
from aft_harness.cli import main
from aft_harness.errors import TaskError
from aft_harness.harness import evaluation
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.score_store import ScoreStore
from aft_harness.results import leaderboard
from aft_harness.studies import transfer
from aft_harness.studies.plan import Plan
from aft_harness.training import train as training

TOYS = str(Path(__file__).parents[1] / "toy_tasks")


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


@pytest.fixture
def plan(checkpoint: str, tmp_path: Path) -> Path:
    told = {
        "models": [{"pretrained": checkpoint, "device": "cpu", "batch_size": 4}],
        "train": {"toy_choice": None, "both": {"toy_choice": {"limit": 4}, "toy_text": {"limit": 4, "weight": 2.0}}},
        "evaluate": {"toy_choice": None, "toy_text": {"docs": "0:6", "seeds": [0]}},
        "layers": [[1]],
        "seeds": [0, 1],
        "recipe": {"epochs": 1, "lr": 0.3, "rate_unit": "absolute"},
        "include_path": [TOYS],
    }
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(told))
    return path


def run(plan: Path, folder: Path, *options: str) -> Any:
    table = folder.parent / f"{folder.name}.csv"
    return CliRunner().invoke(main, ["transfer", str(plan), "--folder", str(folder), "--to", str(table), *options])


def undated(path: Path) -> pd.DataFrame:
    return leaderboard.load(path).drop(columns=["date"])


def test_a_study_makes_a_leaderboard_and_is_never_done_twice(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / "map.png", tmp_path / "map.svg", tmp_path / "l.md"]
    asked = ["--heat-map", str(files[0]), "--heat-map", str(files[1]), "--markdown", str(files[2])]
    first = run(plan, tmp_path / "work", *asked)
    assert first.exit_code == 0, first.stderr
    table = leaderboard.load(tmp_path / "work.csv")
    # Two sources, two seeds and their pooled row on the one task; seed 0 alone on the other.
    assert len(table) == 2 * 3 + 2 and set(table["n"]) == {12, 6}
    assert table.groupby("task")["p_holm"].count().to_dict() == {"toy_choice": 2, "toy_text": 2}
    transfers = table[table["task"] == "toy_text"].set_index("trained_on")["transfer"].to_dict()
    assert transfers == {"toy_choice": 1, "toy_choice+toy_text": 0}
    assert all(path.stat().st_size > 500 for path in files) and len(list((tmp_path / "work/boosters").iterdir())) == 4
    before = {path: path.read_bytes() for path in [tmp_path / "work.csv", *files]}
    for module, name in ((training, "train"), (evaluation, "evaluate")):
        monkeypatch.setattr(module, name, lambda *args, **kwargs: pytest.fail("done twice"))
    again = run(plan, tmp_path / "work", *asked)
    assert again.exit_code == 0, again.stderr
    assert {path: path.read_bytes() for path in before} == before and again.stdout == first.stdout


def test_a_study_that_is_broken_off_again_and_again_comes_to_the_same(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(plan, tmp_path / "whole").exit_code == 0
    steps = 0
    limit = 5

    def breaking(real: Any) -> Any:
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps > limit:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        return step

    for owner, name in ((Booster, "save"), (ScoreStore, "put"), (ScoreStore, "put_texts")):
        monkeypatch.setattr(owner, name, breaking(getattr(owner, name)))
    breaks = 0
    while (done := run(plan, tmp_path / "broken")).exit_code and breaks < 30:
        assert "the same command goes on from there" in done.stderr
        steps = 0
        breaks += 1
    assert 2 < breaks < 30
    pd.testing.assert_frame_equal(undated(tmp_path / "broken.csv"), undated(tmp_path / "whole.csv"))


def test_stock_runs_make_the_same_leaderboard(plan: Path, checkpoint: str, tmp_path: Path) -> None:
    assert run(plan, tmp_path / "ours").exit_code == 0
    for booster in (None, *sorted((tmp_path / "ours" / "boosters").iterdir())):
        tracker = EvaluationTracker(output_path=str(tmp_path / "stock"))
        found = simple_evaluate(
            model=SteeredHFLM(checkpoint, vector=str(booster) if booster else None, device="cpu", batch_size=4),
            model_args={"pretrained": checkpoint, "vector": str(booster)},
            tasks=["toy_choice"],
            task_manager=TaskManager(include_path=TOYS),
            evaluation_tracker=tracker,
            log_samples=True,
            bootstrap_iters=0,
        )
        assert found is not None
        samples = found.pop("samples")
        tracker.save_results_aggregated(results=found, samples=samples)
        tracker.save_results_samples(task_name="toy_choice", samples=samples["toy_choice"])
    added = CliRunner().invoke(
        main, ["leaderboard", "add", str(tmp_path / "stock"), "--to", str(tmp_path / "stock.csv")]
    )
    assert added.exit_code == 0 and "6 rows added, 0 replaced" in added.stdout, added.stderr
    ours = undated(tmp_path / "ours.csv")
    ours = ours[ours["task"] == "toy_choice"].reset_index(drop=True)
    stock = undated(tmp_path / "stock.csv")
    # The family of ours is larger: it also holds the other task.
    pd.testing.assert_frame_equal(ours.drop(columns="p_holm"), stock.drop(columns="p_holm"))
    again = CliRunner().invoke(
        main, ["leaderboard", "add", str(tmp_path / "stock"), "--to", str(tmp_path / "stock.csv")]
    )
    assert "0 rows added, 0 replaced, 6 there already" in again.stdout
    shown = CliRunner().invoke(main, ["leaderboard", "show", str(tmp_path / "stock.csv"), "--task", "toy_choice"])
    assert shown.exit_code == 0 and shown.stdout.count("| toy_choice | acc |") == 2
    for wrong in (["--task", "x"], ["--sort", "x"], ["--metric", "x"]):
        failed = CliRunner().invoke(main, ["leaderboard", "show", str(tmp_path / "stock.csv"), *wrong])
        assert failed.exit_code == 1 and failed.stderr.startswith("Error:")


def test_documents_that_are_evaluated_are_not_learned_from(checkpoint: str) -> None:
    told = {"models": [checkpoint], "train": {"a": {"toy_choice": {"train_docs": "test[0:8]"}}}, "include_path": [TOYS]}
    lm = SteeredHFLM(checkpoint, device="cpu")
    apart = transfer.trainings(lm, Plan.of({**told, "evaluate": {"toy_choice": {"docs": "6:12"}}}))
    (task,) = apart[0].tasks
    assert len(task.train) == 6 and task.overlapping >= 2
    with pytest.raises(TaskError, match="every training document is also evaluated on"):
        transfer.trainings(lm, Plan.of({**told, "evaluate": {"toy_choice": {"docs": "0:12"}}}))


def test_another_training_is_another_cell(checkpoint: str) -> None:
    lm = SteeredHFLM(checkpoint, device="cpu")
    told: dict[str, Any] = {"models": [checkpoint], "train": ["toy_choice"], "evaluate": {"toy_choice": {"limit": 4}}}
    told["include_path"] = [TOYS]
    same: list[dict[str, Any]] = [{}, {"train": {"renamed": {"toy_choice": None}}}]
    fewer = {"train": {"toy_choice": {"toy_choice": {"limit": 3}}}}
    other: list[dict[str, Any]] = [{"seeds": [1]}, {"layers": [1]}, {"recipe": {"lr": 0.5}}, fewer]
    identities = [transfer.trainings(lm, Plan.of({**told, **change}))[0].identity for change in (*same, *other)]
    assert identities[0] == identities[1] and len(set(identities)) == 1 + len(other)


def test_what_a_study_says_of_choices_is_not_for_texts(checkpoint: str) -> None:
    lm = SteeredHFLM(checkpoint, device="cpu")
    told: dict[str, Any] = {"models": [checkpoint], "train": ["toy_choice", "toy_text"], "include_path": [TOYS]}
    told |= {"evaluate": {"toy_choice": {"limit": 4}}, "recipe": {"objective": "choice"}}
    objectives = [one.settings.objective for one in transfer.trainings(lm, Plan.of(told))]
    assert objectives == ["choice", None]


def test_a_dry_run_tells_what_is_left(plan: Path, tmp_path: Path) -> None:
    told = run(plan, tmp_path / "work", "--dry-run")
    assert told.exit_code == 0, told.stderr
    assert told.stdout.count("about") == 7 and not (tmp_path / "work.csv").exists()
    assert run(plan, tmp_path / "work").exit_code == 0
    after = run(plan, tmp_path / "work", "--dry-run")
    assert after.stdout.count("done") == 6 and "about 0.0 min in all" in after.stdout


def test_texts_are_counted_as_long_as_they_may_be(checkpoint: str) -> None:
    told = {
        "models": [checkpoint],
        "train": ["toy_choice"],
        "evaluate": {"toy_text": {"docs": "0:6"}, "toy_choice": {}},
    }
    lm = SteeredHFLM(checkpoint, device="cpu", batch_size=4)
    plan = Plan.of({**told, "include_path": [TOYS]})
    written, chosen = (transfer._cost(lm, task, plan, [1.0, 0.5]) for task in plan.evaluations)
    assert written[1] == 3 * 8 * 2  # the unchanged model and two boosters, each in batches of 4 and 2 texts of 8 tokens
    assert chosen[1] == 0 < chosen[0]
    assert len(written[2]) == 4 and not chosen[2]


def test_small_studies_need_no_file(checkpoint: str, tmp_path: Path) -> None:
    common = ["transfer", "--folder", str(tmp_path / "w"), "--to", str(tmp_path / "l.csv"), "--include_path", TOYS]
    small = ["--model", checkpoint, "--train", "toy_choice", "--evaluate", "toy_choice=0:5", "--layers", "1"]
    done = CliRunner().invoke(main, [*common, *small, "--train-limit", "4"])
    assert done.exit_code == 0, done.stderr
    assert leaderboard.load(tmp_path / "l.csv")["n"].tolist() == [5]
    for wrong, reason in (
        (small[:2], "give --train"),
        ([*small, "--seeds", "x"], "--seeds x"),
        ([*small, "--heat-map", str(tmp_path / "map.pdf")], "ends in .png or .svg"),
        ([*small, "--markdown", str(tmp_path / "no" / "l.md")], "is not a folder"),
    ):
        failed = CliRunner().invoke(main, [*common, *wrong])
        assert failed.exit_code == 1 and reason in failed.stderr, failed.stderr
