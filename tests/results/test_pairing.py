from __future__ import annotations

import json
from pathlib import Path

import pytest

from aft_harness.errors import TaskError
from aft_harness.results.pairing import compare_samples, read_samples, select


def write(folder: Path, name: str, outcomes: list[int], **changes: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {"doc_id": i, "doc_hash": f"d{i}", "prompt_hash": f"p{i}", "target_hash": "t", "filter": "none", "acc": outcome}
        | changes
        for i, outcome in enumerate(outcomes)
    ]
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_newest_samples_of_the_very_task_are_read(tmp_path: Path) -> None:
    write(tmp_path / "m", "samples_arc_2026-01-01T00-00-00.jsonl", [0, 0])
    write(tmp_path / "m", "samples_arc_2026-02-01T00-00-00.jsonl", [1, 1])
    write(tmp_path / "m", "samples_arc_easy_2026-03-01T00-00-00.jsonl", [0, 1])
    assert [line["acc"] for line in read_samples(tmp_path, "arc").values()] == [1, 1]


def test_runs_are_paired_by_document(tmp_path: Path) -> None:
    write(tmp_path / "a", "samples_x_2026-01-01.jsonl", [0, 0, 1, 1])
    write(tmp_path / "b", "samples_x_2026-01-01.jsonl", [1, 0, 1, 0])
    result = compare_samples(read_samples(tmp_path / "a", "x"), read_samples(tmp_path / "b", "x"), "acc")
    assert (result.n, result.gained, result.lost, result.p_value) == (4, 1, 1, 1.0)


def test_runs_that_are_no_pair_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", "samples_x_2026-01-01.jsonl", [0, 1])
    write(tmp_path / "short", "samples_x_2026-01-01.jsonl", [0])
    write(tmp_path / "prompt", "samples_x_2026-01-01.jsonl", [0, 1], prompt_hash="other")
    base = read_samples(tmp_path / "a", "x")
    with pytest.raises(TaskError, match="different documents"):
        compare_samples(base, read_samples(tmp_path / "short", "x"), "acc")
    with pytest.raises(TaskError, match="document 0 has another prompt_hash"):
        compare_samples(base, read_samples(tmp_path / "prompt", "x"), "acc")
    with pytest.raises(TaskError, match="holds no samples of y"):
        read_samples(tmp_path, "y")
    with pytest.raises(TaskError, match="no metric 'f1'"):
        compare_samples(base, base, "f1")
    for sums in ([0.5, 3], float("nan"), "0.5"):
        write(tmp_path / "sums", "samples_x_2026-01-01.jsonl", [0, 1], acc=sums)
        samples = read_samples(tmp_path / "sums", "x")
        with pytest.raises(TaskError, match="not one number a document"):
            compare_samples(samples, samples, "acc")


def test_documents_are_selected_by_a_slice(tmp_path: Path) -> None:
    write(tmp_path / "a", "samples_x_2026-01-01.jsonl", [0, 0, 1, 1, 0])
    samples = read_samples(tmp_path / "a", "x")
    assert [key[1] for key in select(samples, "1:3")] == [1, 2]
    assert len(select(samples, "3:")) == 2 and len(select(samples, ":1")) == 1 and select(samples, None) == samples
    for wrong in ("3", "a:b", "7:9", "-1:2"):
        with pytest.raises(TaskError, match="--docs"):
            select(samples, wrong)
