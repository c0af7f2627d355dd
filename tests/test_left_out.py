"""The table of what boosters of left-out tasks compare with."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

SCRIPTS = str(Path(__file__).parent.parent / "scripts" / "studies")


@pytest.fixture
def left_out(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SCRIPTS)
    yield importlib.import_module("left_out")
    del sys.modules["left_out"]


def test_rows_by_acc_are_corrected_together(left_out: Any, tmp_path: Path) -> None:
    values = [0.001, 0.04, 0.03, 0.5]
    rows = [
        {"method": method, "task": task, "metric": metric, "p_value": value}
        for (method, task), value in zip(
            [("LoRA", "a"), ("LoRA", "b"), ("shots", "a"), ("shots", "b")], values, strict=True
        )
        for metric in ("acc_norm", "acc")
    ]
    left_out.write(tmp_path / "table.csv", rows)
    table = pd.read_csv(tmp_path / "table.csv")
    assert table["metric"].tolist() == ["acc", "acc_norm"] * 4
    by_acc = table[table["metric"] == "acc"]
    assert by_acc["p_holm"].tolist() == pytest.approx(multipletests(values, method="holm")[1].tolist())
    assert table.loc[table["metric"] == "acc_norm", "p_holm"].isna().all()


def test_every_task_is_left_out_once(left_out: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("aft_harness.demo.model_folder", lambda: tmp_path)
    plan = left_out.plan()
    tasks = {selection.name for selection in plan.sources[left_out.MIXTURE]}
    for task in tasks:
        learned = {selection.name for selection in plan.sources[left_out.WITHOUT + task]}
        assert learned == tasks - {task}
        assert [asked.task for asked in plan.evaluations].count(task) == 1
    assert plan.seeds == (left_out.SEED,)
