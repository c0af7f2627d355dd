"""Studies as library calls: resumed at any moment, the same leaderboard every time, each task loaded once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from gguf_cases import write_gguf
from lm_eval.tasks import TaskManager
from study_cases import TOYS, study

import aft_harness as aft
from aft_harness.boosters.booster import Booster
from aft_harness.errors import ModelError, TaskError
from aft_harness.harness import evaluation
from aft_harness.harness.examples import TaskExamples
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.score_store import ScoreStore
from aft_harness.progress import TrainingProgress
from aft_harness.results import leaderboard
from aft_harness.studies import transfer
from aft_harness.studies.plan import Plan
from aft_harness.training import train as training


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


def plan_of(checkpoint: str, **changes: Any) -> Plan:
    return Plan.of(study(checkpoint, **changes))


def undated(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop(columns=["date"])


class Recorder:
    """Keeps what a study reports."""

    def __init__(self) -> None:
        self.cells: list[tuple[int, int, str]] = []
        self.steps: list[TrainingProgress] = []
        self.scored: list[tuple[int, int]] = []
        self.drawn: list[TaskExamples] = []
        self.reports = transfer.Reports(
            cell=lambda *cell: self.cells.append(cell),
            training=self.steps.append,
            evaluation=lambda *done: self.scored.append(done),
            examples=self.drawn.append,
        )


def test_a_study_makes_a_leaderboard_reports_and_is_never_done_twice(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: Counter[str] = Counter()
    load = TaskManager.load

    def spy(self: Any, spec: Any, *args: Any, **kwargs: Any) -> Any:
        loaded[str(spec)] += 1
        return load(self, spec, *args, **kwargs)

    monkeypatch.setattr(TaskManager, "load", spy)
    plan, seen = plan_of(checkpoint), Recorder()
    table = transfer.run(plan, tmp_path / "work", tmp_path / "l.csv", seen.reports)
    assert loaded == {"toy_choice": 1, "toy_text": 1}
    # Two sources, two seeds and their pooled row on the one task; seed 0 alone on the other.
    assert len(table) == 2 * 3 + 2 and set(table["n"]) == {12, 6}
    assert table.groupby("task")["p_holm"].count().to_dict() == {"toy_choice": 2, "toy_text": 2}
    transfers = table[table["task"] == "toy_text"].set_index("trained_on")["transfer"].to_dict()
    assert transfers == {"toy_choice": 1, "toy_choice+toy_text": 0}
    assert len(list((tmp_path / "work" / "boosters").iterdir())) == 4
    pd.testing.assert_frame_equal(leaderboard.load(tmp_path / "l.csv"), table)

    assert [cell[:2] for cell in seen.cells] == [(1, 4), (2, 4), (3, 4), (4, 4), (1, 2), (2, 2)]
    assert [cell[2] for cell in seen.cells[:2]] == [f"train toy_choice, layers 1, seed {seed}" for seed in (0, 1)]
    assert [cell[2] for cell in seen.cells[4:]] == ["evaluate toy_choice", "evaluate toy_text"]
    assert [(task.task, len(task.train)) for task in seen.drawn] == [
        ("toy_choice", 23),
        ("toy_choice", 4),
        ("toy_text", 4),
    ]
    last = [step for step in seen.steps if step.step == step.steps]
    assert len(last) == 4 and {step.epoch for step in last} == {1}
    assert (36, 36) in seen.scored and seen.scored[-1] == (6, 6)

    before = (tmp_path / "l.csv").read_bytes()
    for module, name in ((training, "train"), (evaluation, "evaluate")):
        monkeypatch.setattr(module, name, lambda *args, **kwargs: pytest.fail("done twice"))
    again = transfer.run(plan, tmp_path / "work", tmp_path / "l.csv")
    pd.testing.assert_frame_equal(again, table)
    assert (tmp_path / "l.csv").read_bytes() == before


def test_a_study_that_is_interrupted_again_and_again_comes_to_the_same(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(checkpoint)
    whole = transfer.run(plan, tmp_path / "whole", tmp_path / "whole.csv")
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
    broken, breaks = None, 0
    while broken is None and breaks < 30:
        steps = 0
        try:
            broken = transfer.run(plan, tmp_path / "broken", tmp_path / "broken.csv")
        except KeyboardInterrupt:
            breaks += 1
    assert 2 < breaks < 30 and broken is not None
    pd.testing.assert_frame_equal(undated(broken), undated(whole))


def test_the_front_door_runs_the_same_study(checkpoint: str, tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "models": [{"pretrained": checkpoint, "device": "cpu"}],
        "train": ["toy_choice"],
        "evaluate": {"toy_choice": {"docs": "0:5"}},
        "layers": [1],
        "recipe": {"epochs": 1},
        "include_path": [TOYS],
    }
    found = aft.transfer(content, tmp_path / "work")
    assert found["n"].tolist() == [5]
    pd.testing.assert_frame_equal(leaderboard.load(tmp_path / "work" / "leaderboard.csv"), found)
    ours = transfer.run(Plan.of(content), tmp_path / "other", tmp_path / "other.csv")
    pd.testing.assert_frame_equal(undated(ours), undated(found))


def test_documents_that_are_evaluated_are_not_learned_from(checkpoint: str, tmp_path: Path) -> None:
    lm = SteeredHFLM(checkpoint, device="cpu")
    source = {"train": {"a": {"toy_choice": {"train_docs": "test[0:8]"}}}, "seeds": [0]}
    apart = transfer.Study(lm, plan_of(checkpoint, **source, evaluate={"toy_choice": {"docs": "6:12"}}), tmp_path)
    (task,) = apart.trainings[0].tasks
    assert len(task.train) == 6 and task.overlapping >= 2
    assert "2 dropped (same question in the evaluated split)" in str(task)
    with pytest.raises(TaskError, match="every training document is also evaluated; choose others with train_docs"):
        transfer.Study(lm, plan_of(checkpoint, **source, evaluate={"toy_choice": {"docs": "0:12"}}), tmp_path)


def test_another_training_is_another_cell(checkpoint: str, tmp_path: Path) -> None:
    lm = SteeredHFLM(checkpoint, device="cpu")
    same: list[dict[str, Any]] = [{}, {"train": {"renamed": {"toy_choice": None}}}, {"layers": ["1-1"]}]
    fewer = {"train": {"toy_choice": {"toy_choice": {"limit": 3}}}}
    other: list[dict[str, Any]] = [{"seeds": [1]}, {"layers": ["all"]}, {"recipe": {"lr": 0.5}}, fewer]
    other += [{"num_fewshot": 1}]
    common = {"train": ["toy_choice"], "evaluate": {"toy_choice": {"limit": 4}}, "seeds": [0], "recipe": {}}
    identities = [
        transfer.Study(lm, plan_of(checkpoint, **{**common, **change}), tmp_path).trainings[0].identity
        for change in (*same, *other)
    ]
    assert len(set(identities[: len(same)])) == 1 and len(set(identities)) == 1 + len(other)


def test_the_recipe_decides_where_a_plan_names_no_layers(checkpoint: str, tmp_path: Path) -> None:
    lm = SteeredHFLM(checkpoint, device="cpu")
    plan = replace(plan_of(checkpoint, seeds=[0]), layers=(None,))
    assert {cell.settings.layers.text for cell in transfer.Study(lm, plan, tmp_path).trainings} == {"1-"}


def test_what_a_study_says_of_choices_is_not_for_texts(checkpoint: str, tmp_path: Path) -> None:
    lm = SteeredHFLM(checkpoint, device="cpu")
    plan = plan_of(
        checkpoint,
        train=["toy_choice", "toy_text"],
        evaluate={"toy_choice": {"limit": 4}},
        recipe={"objective": "choice"},
        seeds=[0],
    )
    objectives = [cell.settings.objective for cell in transfer.Study(lm, plan, tmp_path).trainings]
    assert objectives == ["choice", None]


def test_another_evaluation_is_another_file(checkpoint: str, tmp_path: Path) -> None:
    lm = SteeredHFLM(checkpoint, device="cpu")
    plan = plan_of(checkpoint, train=["toy_choice"], seeds=[0])
    found = transfer.Study(lm, plan, tmp_path)
    first, second = plan.evaluations
    booster = Booster.static({1: lm.model.model.embed_tokens.weight.new_ones(32)})
    again = transfer.Study(lm, plan, tmp_path)
    assert found.result(first, [booster]) == again.result(first, [booster])
    fewshot = transfer.Study(lm, plan_of(checkpoint, train=["toy_choice"], seeds=[0], num_fewshot=1), tmp_path)
    paths = {
        found.result(first, [booster]),
        found.result(first, [booster.scaled(2.0)]),
        found.result(first, [booster, booster.scaled(2.0)]),
        found.result(first, [booster.with_provenance(seed=5)]),
        found.result(replace(first, docs="0:5"), [booster]),
        found.result(second, [booster]),
        fewshot.result(first, [booster]),
    }
    assert len(paths) == 7


def test_another_process_finds_all_work_done(checkpoint: str, tmp_path: Path) -> None:
    # The task's configuration holds functions, whose printed form is an address.
    arguments = {
        "models": [{"pretrained": checkpoint, "device": "cpu", "batch_size": 4}],
        "train": {"few": {"toy_text": {"limit": 2}}},
        "evaluate": {"toy_functions": {"limit": 3}},
        "layers": [[1]],
        "seeds": [0],
        "recipe": {"epochs": 1},
        "include_path": [TOYS],
    }
    program = f"""
import sys
from pathlib import Path
from aft_harness.harness.model import SteeredHFLM
from aft_harness.studies import transfer
from aft_harness.studies.plan import Plan
SteeredHFLM.score_variants = lambda *a, _score=SteeredHFLM.score_variants, **k: (print("scored"), _score(*a, **k))[1]
transfer.run(Plan.of({arguments!r}), Path("work"), Path("l.csv"))
"""
    scored = []
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert done.returncode == 0, done.stderr
        scored.append(done.stdout.count("scored"))
    assert scored[0] > 0 and scored[1] == 0
    assert len(list((tmp_path / "work" / "results").iterdir())) == 1


@pytest.fixture
def file(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"), tiny_tokenizer)


def test_boosters_are_evaluated_on_the_files_of_their_model(checkpoint: str, file: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (the extra gguf)")
    arguments = {"pretrained": checkpoint, "device": "cpu", "batch_size": 4}
    files = [{"pretrained": str(file), "n_threads": 1, "device": "cpu"}]
    alone = transfer.run(plan_of(checkpoint), tmp_path / "alone", tmp_path / "alone.csv")
    seen, plan = Recorder(), plan_of(checkpoint, models=[{**arguments, "files": files}])
    table = transfer.run(plan, tmp_path / "work", tmp_path / "l.csv", seen.reports)
    assert [cell[2] for cell in seen.cells[4:]] == [
        "evaluate toy_choice",
        "evaluate toy_text",
        "evaluate toy_choice on tiny.gguf",
        "evaluate toy_text on tiny.gguf",
    ]
    on_file = table[table["model"] == "tiny"]
    model = table[table["model"] != "tiny"]
    pd.testing.assert_frame_equal(undated(model.reset_index(drop=True)), undated(alone))
    # The very same weights: what comes out is the same, against a baseline of its own.
    keys = ["booster_sha256", "task", "metric", "seed"]
    columns = ["n", "baseline", "steered", "delta", "gained", "lost", "p_value", "p_holm"]
    both = on_file.merge(model, on=keys, suffixes=("", "_model"))
    assert len(both) == len(on_file) == len(alone)
    for column in columns:
        ours, theirs = (both[name].astype("Float64").fillna(-1).tolist() for name in (column, f"{column}_model"))
        assert ours == pytest.approx(theirs), column
    before = (tmp_path / "l.csv").read_bytes()
    transfer.run(plan, tmp_path / "work", tmp_path / "l.csv")
    assert (tmp_path / "l.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": ["all"]}, r"train toy_choice.*GGUF files cannot be steered at layer 0.*layers: \[1-\]"),
        ({"recipe": {"kind": "contextual"}}, r"steered with vectors only; use recipe: \{kind: static\}"),
    ],
)
def test_what_a_file_cannot_be_steered_with_is_refused_before_it_is_trained(
    checkpoint: str, file: Path, tmp_path: Path, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "train", lambda *args, **kwargs: pytest.fail("trained"))
    plan = plan_of(checkpoint, models=[{"pretrained": checkpoint, "device": "cpu", "files": [str(file)]}], **changes)
    with pytest.raises(TaskError, match=message):
        transfer.run(plan, tmp_path / "work", tmp_path / "l.csv")
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match=r"tiny\.gguf: is not a GGUF file"):
        transfer.run(plan, tmp_path / "work", tmp_path / "l.csv")
