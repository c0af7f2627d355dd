from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic_runs import lines

from aft_harness.errors import FileError, TaskError
from aft_harness.results.pairing import (
    Asked,
    by_document,
    compare_samples,
    compared,
    mean_samples,
    read_lines,
    read_samples,
    select,
)
from aft_harness.slices import Slice


def write(folder: Path, name: str, outcomes: list[int], **changes: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    samples = [
        {"doc_id": i, "doc_hash": f"d{i}", "prompt_hash": f"p{i}", "target_hash": "t", "filter": "none", "acc": outcome}
        | changes
        for i, outcome in enumerate(outcomes)
    ]
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in samples))


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
    with pytest.raises(TaskError, match="document 0 has a different prompt_hash"):
        compare_samples(base, read_samples(tmp_path / "prompt", "x"), "acc")
    with pytest.raises(TaskError, match="no samples of y"):
        read_samples(tmp_path, "y")
    with pytest.raises(TaskError, match="no metric 'f1'"):
        compare_samples(base, base, "f1")
    for sums in ([0.5, 3], float("nan"), "0.5"):
        write(tmp_path / "sums", "samples_x_2026-01-01.jsonl", [0, 1], acc=sums)
        samples = read_samples(tmp_path / "sums", "x")
        with pytest.raises(TaskError, match="not one number per document"):
            compare_samples(samples, samples, "acc")


def test_what_was_asked_is_known_by_its_documents_and_prompts() -> None:
    asked = [
        Asked.of(made) for made in (lines([0, 1]), lines([1, 1], "f1")[::-1], lines([0, 1], prompt="q"), lines([0]))
    ]
    assert asked[0] == asked[1]  # whatever came out, in whatever order
    assert asked[0].documents == asked[2].documents and asked[0].prompts != asked[2].prompts
    assert asked[3].documents not in (asked[0].documents, "")
    (target,) = lines([0])
    assert Asked.of([{**target, "target_hash": "u"}]).prompts != asked[3].prompts
    with pytest.raises(TaskError, match="the runs of different seeds used different prompts"):
        mean_samples([lines([0, 1]), lines([0, 1], prompt="q")])


def test_documents_are_selected_by_a_slice(tmp_path: Path) -> None:
    write(tmp_path / "a", "samples_x_2026-01-01.jsonl", [0, 0, 1, 1, 0])
    samples = read_samples(tmp_path / "a", "x")
    assert [key[1] for key in select(samples, Slice(1, 3))] == [1, 2]
    assert len(select(samples, Slice(3))) == 2 and len(select(samples, Slice(0, 1))) == 1
    assert select(samples, None) == samples
    with pytest.raises(TaskError, match="documents 7:9: none of the 5 documents with samples is in this range"):
        select(samples, Slice(7, 9))


def test_another_task_may_be_called_like_a_year(tmp_path: Path) -> None:
    write(tmp_path, "samples_arc_2026-01-01T00-00-00.jsonl", [0])
    write(tmp_path, "samples_arc_2030_2026-01-01T00-00-00.jsonl", [1])
    assert [line["acc"] for line in read_samples(tmp_path, "arc").values()] == [0]
    assert [line["acc"] for line in read_samples(tmp_path, "arc_2030").values()] == [1]


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    text = "a\u2028b\u2029c\u0085d"
    sample = {"doc_id": 0, "doc_hash": "d", "prompt_hash": "p", "target_hash": text, "filter": "none"}
    path = tmp_path / "samples.jsonl"
    path.write_bytes(json.dumps(sample, ensure_ascii=False).encode() + b"\r\n\n")
    assert read_lines(path) == [sample]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (b'{"doc_id": 1', r"line 2 is not valid JSON \(.*\); run lm_eval again"),
        (b"[" * 100_000, "line 2 is not valid JSON"),
        (b"[1]", "line 2 is not an lm_eval sample: it lacks doc_id"),
        (b'{"doc_id": 1}', "line 2 is not an lm_eval sample: it lacks doc_hash"),
        (b'{"doc_id": [1]}', "line 2 is not an lm_eval sample: it lacks doc_id"),
        (b"\xff", "not an lm_eval samples file"),
    ],
)
def test_a_malformed_file_is_one_line_that_names_it(tmp_path: Path, second: bytes, message: str) -> None:
    write(tmp_path, "samples_x_2026-01-01.jsonl", [0])
    with (tmp_path / "samples_x_2026-01-01.jsonl").open("ab") as file:
        file.write(second)
    with pytest.raises(TaskError, match=rf"^\S*samples_x_2026-01-01\.jsonl: {message}[^\n]*$"):
        read_samples(tmp_path, "x")


def test_what_cannot_be_read_or_chosen_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"nowhere\.jsonl: cannot be read"):
        read_lines(tmp_path / "nowhere.jsonl")
    write(tmp_path, "samples_x_2026-01-01.jsonl", [0])
    with pytest.raises(TaskError, match="has no filter strict; it has none"):
        read_samples(tmp_path, "x", "strict")
    write(tmp_path, "samples_x_2026-01-02.jsonl", [])
    with pytest.raises(TaskError, match=r"samples_x_2026-01-02\.jsonl: empty file"):
        read_samples(tmp_path, "x")


def test_the_mean_of_equal_numbers_is_that_number() -> None:
    for count in range(1, 12):
        line = {"doc_id": 0, "doc_hash": "d", "prompt_hash": "p", "target_hash": "t", "filter": "none"}
        line |= {"metrics": ["f1"], "f1": 0.1}
        assert mean_samples([[line]] * count)[0]["f1"] == 0.1


def test_a_document_with_two_different_samples_is_refused() -> None:
    samples = lines([0, 1])
    assert by_document([*samples, *samples], "none") == by_document(samples, "none")
    for act in (lambda twice: list(compared(twice, twice)), lambda twice: mean_samples([twice, twice])):
        with pytest.raises(TaskError, match="document 0 has two different samples"):
            act([*samples, *lines([1])])


def test_numbers_that_overflow_are_not_compared() -> None:
    for outcome in (10**400, 1e300, float("inf"), float("nan")):
        huge = [{**line, "acc": outcome} for line in lines([0, 1])]
        assert list(compared(huge, huge)) == []


def test_samples_without_metrics_or_documents_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "samples_x_2026-01-01.jsonl", [0])
    samples = read_lines(tmp_path / "samples_x_2026-01-01.jsonl")
    with pytest.raises(TaskError, match="do not list their metrics"):
        list(compared(samples, samples))
    with pytest.raises(TaskError, match="do not list their metrics"):
        mean_samples([samples, samples])
    with pytest.raises(TaskError, match="no documents"):
        compare_samples({}, {}, "acc")
