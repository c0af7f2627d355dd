from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from report_cases import booster, row, run, sample, sweep_row, write_run, write_table
from safetensors.torch import save_file

from aft_harness.errors import FileError, TaskError
from aft_harness.publish.report.sources import OF_STUDY, read
from aft_harness.results.statistics import holm


def runs(folder: Path) -> None:
    write_run(run({"a": [sample(0, [-1, -2], 1), sample(1, [-1, -2], 0)]}), folder / "baseline" / "toy")
    write_run(run({"a": [sample(0, [-2, -1], 1), sample(1, [-1, -2], 0)]}, "s"), folder / "mine" / "toy")


def test_every_kind_of_output_is_found_by_its_content(tmp_path: Path) -> None:
    write_table(tmp_path / "board.csv", [row()])
    (tmp_path / "layers").mkdir()
    write_table(tmp_path / "layers" / "sweep.csv", [sweep_row(0, layers="1"), sweep_row(1, layers="2", booster="x")])
    (tmp_path / "loss.csv").write_text("step,epoch,loss,development_loss\n1,1,2.5,\n2,1,1.5,1.75\n")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    booster().save(tmp_path / "mine.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    runs(tmp_path / "out")
    found = read([tmp_path])
    assert [(curve.name, curve.frame["loss"].tolist()) for curve in found.curves] == [("loss", [2.5, 1.5])]
    assert [(file.name, file.of_study) for file in found.boosters] == [("mine", False)]
    assert len(found.runs) == 1 and len(found.runs[0]) == 2
    assert sorted(each.get("sweep", "") for each in found.rows) == ["", "", "layers", "layers"]
    assert {each["n"] for each in found.rows} == {100, 2}
    assert len(found.notes) == 1 and found.notes[0].startswith("left out: model.safetensors: ")
    assert str(tmp_path) not in found.notes[0]


def test_what_is_named_twice_is_read_once(tmp_path: Path) -> None:
    path = write_table(tmp_path / "board.csv", [row(), row(task="b", task_version="2")])
    booster().save(tmp_path / "one.safetensors")
    booster().save(tmp_path / "same.safetensors")
    runs(tmp_path / "out")
    once, twice = read([tmp_path]), read([tmp_path, path, tmp_path, tmp_path / "one.safetensors"])
    assert once.rows == twice.rows and len(once.rows) == 3
    assert len(twice.boosters) == len(twice.runs) == 1


def test_p_values_are_corrected_over_everything_in_the_report(tmp_path: Path) -> None:
    values = [0.01, 0.02, 0.03]
    one = write_table(tmp_path / "one.csv", [row(task="a", p_value=values[0]), row(task="b", p_value=values[1])])
    two = write_table(tmp_path / "two.csv", [row(task="c", p_value=values[2])])
    found = {each["task"]: each["p_holm"] for each in read([one, two]).rows}
    assert list(found.values()) == pytest.approx(holm(values))


def test_a_table_counts_before_the_files_of_its_study(tmp_path: Path) -> None:
    work = tmp_path / "work"
    for folder in ("results", "boosters"):
        (work / folder).mkdir(parents=True)
    (work / OF_STUDY[0]).touch()
    (work / "results" / "a-1.json").write_text(json.dumps([row(), row(task="of an earlier plan")]))
    booster().save(work / "boosters" / "a-s0.safetensors")
    assert {each["task"] for each in read([work]).rows} == {"a", "of an earlier plan"}
    found = read([work, write_table(tmp_path / "board.csv", [row()])])
    assert {each["task"] for each in found.rows} == {"a"}
    assert [file.of_study for file in found.boosters] == [True]
    (work / "results" / "b-1.json").write_text("{")
    with pytest.raises(TaskError, match=r"b-1\.json: not the results of a study"):
        read([work])


def test_names_of_a_table_win_over_made_up_ones(tmp_path: Path) -> None:
    runs(tmp_path / "out")
    (made,) = read([tmp_path / "out"]).rows
    table = write_table(tmp_path / "t.csv", [{**made, "booster": "mine.safetensors"}])
    for sources in ([table, tmp_path / "out"], [tmp_path / "out", table]):
        assert [each["booster"] for each in read(sources).rows] == ["mine.safetensors"]


def test_tables_of_earlier_versions_are_read_and_claim_nothing(tmp_path: Path) -> None:
    path = tmp_path / "old.csv"
    path.write_text("booster,task,metric,n,baseline,steered,delta,ci_low,ci_high,p_value\nx,a,acc,9,0,1,1,1,1,0.001\n")
    (found,) = read([path]).rows
    assert (found["booster"], found["p_holm"], found["revision"]) == ("x", None, "")


@pytest.mark.parametrize(
    ("name", "content", "error", "reason"),
    [
        ("nowhere", None, FileError, "nowhere: no such file or folder"),
        ("a.csv", "x,y\n1,2\n", TaskError, "a.csv: not a leaderboard"),
        ("a.csv", "", TaskError, "a.csv: cannot be read as a table"),
        ("a.csv", "step,epoch,loss\n1,1,x\n", TaskError, "a.csv: not a table of training losses"),
        ("a.html", "<p>", TaskError, "a.html: not a leaderboard"),
        ("folder/a.txt", "x", TaskError, "folder: no leaderboard"),
    ],
)
def test_what_cannot_be_reported_is_one_line(
    tmp_path: Path, name: str, content: str | None, error: type[Exception], reason: str, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    with pytest.raises(error, match=reason) as caught:
        read([Path(path.parts[0])])
    assert "\n" not in str(caught.value)


def test_a_table_without_rows_is_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"empty\.csv: there are no results"):
        read([write_table(tmp_path / "empty.csv", [])])


def test_a_steered_run_without_a_baseline_is_an_error(tmp_path: Path) -> None:
    write_run(run({"a": [sample(0, [-2, -1], 1)]}, "s"), tmp_path / "mine")
    with pytest.raises(TaskError, match="no baseline of toy on a; also run lm_eval without vector="):
        read([tmp_path])
