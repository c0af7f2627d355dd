"""`aft leaderboard`: runs of the stock lm-eval make the table that a study makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cli_cases import TOYS, aft, assert_refused
from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker

from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.tasks import Tasks
from aft_harness.results import leaderboard, table
from aft_harness.studies import transfer
from aft_harness.studies.plan import Plan


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


def undated(path: Path) -> pd.DataFrame:
    return leaderboard.load(path).drop(columns=["date"])


def test_stock_runs_make_the_same_leaderboard(checkpoint: str, tmp_path: Path) -> None:
    plan = Plan.of(
        {
            "models": [{"pretrained": checkpoint, "device": "cpu", "batch_size": 4}],
            "train": {"toy_choice": None, "both": {"toy_choice": {"limit": 4}, "toy_text": {"limit": 4, "weight": 2}}},
            "evaluate": {"toy_choice": None, "toy_text": {"docs": "0:6", "seeds": [0]}},
            "layers": [[1]],
            "seeds": [0, 1],
            "recipe": {"epochs": 1, "lr": 0.3, "rate_unit": "absolute"},
            "include_path": [TOYS],
        }
    )
    transfer.run(plan, tmp_path / "ours", tmp_path / "ours.csv")
    manager = Tasks([TOYS]).manager  # lm-eval's own index, which takes seconds to make
    for booster in (None, *sorted((tmp_path / "ours" / "boosters").iterdir())):
        tracker = EvaluationTracker(output_path=str(tmp_path / "stock"))
        found = simple_evaluate(
            model=SteeredHFLM(checkpoint, vector=str(booster) if booster else None, device="cpu", batch_size=4),
            model_args={"pretrained": checkpoint, "vector": str(booster)},
            tasks=["toy_choice"],
            task_manager=manager,
            evaluation_tracker=tracker,
            log_samples=True,
            bootstrap_iters=0,
        )
        assert found is not None
        samples = found.pop("samples")
        tracker.save_results_aggregated(results=found, samples=samples)
        tracker.save_results_samples(task_name="toy_choice", samples=samples["toy_choice"])
    command = ["leaderboard", "add", tmp_path / "stock", "--to", tmp_path / "stock.csv"]
    added = aft(*command)
    assert added.exit_code == 0 and "6 rows added, 0 replaced" in added.stdout, added.stderr
    ours = undated(tmp_path / "ours.csv")
    ours = ours[ours["task"] == "toy_choice"].reset_index(drop=True)
    stock = undated(tmp_path / "stock.csv")
    # The family of ours is larger: it also holds the other task.
    pd.testing.assert_frame_equal(ours.drop(columns="p_holm"), stock.drop(columns="p_holm"))
    assert "0 rows added, 0 replaced, 6 already present" in aft(*command).stdout

    show = ["leaderboard", "show", tmp_path / "stock.csv", "--task", "toy_choice"]
    shown = aft(*show, "--format", "md")
    assert shown.exit_code == 0 and shown.stdout.count("| toy_choice | acc |") == 2
    family = leaderboard.load(tmp_path / "stock.csv").dropna(subset="p_holm")
    ordered = family.sort_values("delta", ascending=False, kind="stable")
    assert aft(*show).stdout == table.render(ordered, "table") + "\n"
    (first,) = json.loads(aft(*show, "--format", "json", "--limit", "1", "--sort", "steered").stdout)
    assert first["steered"] == family["steered"].max()
    assert aft(*show, "--metric", "acc", "--format", "csv").stdout.count("\n") == 1 + 6
    assert aft(*show, "--heat-map", tmp_path / "map.svg").exit_code == 0
    assert (tmp_path / "map.svg").read_bytes().startswith(b"<?xml")
    for wrong, exit_code in (
        (["--task", "x"], 2),
        (["--sort", "x"], 2),
        (["--metric", "x"], 2),
        (["--limit", "0"], 2),
        (["--heat-map", tmp_path / "map.pdf"], 1),
    ):
        assert_refused(aft(*show, *wrong), exit_code, str(wrong[1]))


def test_what_holds_no_results_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "l.csv").write_text("a,b\n1,2\n")
    for arguments, exit_code, reason in (
        (["add", tmp_path / "empty", "--to", tmp_path / "new.csv"], 1, "no results"),
        (["add", tmp_path / "nowhere", "--to", tmp_path / "new.csv"], 2, "nowhere"),
        (["add", tmp_path / "empty", "--to", tmp_path / "no" / "new.csv"], 2, "is not a folder"),
        (["show", tmp_path / "l.csv"], 1, "not a leaderboard"),
        (["show", tmp_path / "nowhere.csv"], 2, "nowhere.csv"),
    ):
        assert_refused(aft("leaderboard", *arguments), exit_code, reason)
