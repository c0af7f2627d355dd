"""Whatever lies in a folder or file, reading it ends in a result or in one line: a seeded fuzzer of each reader."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random
from typing import Any

import pytest
from malformed import INPUTS, WRONG, altered, as_json, one_line_or_fine, spoilt, write
from synthetic_runs import lines, run

from aft_harness.results import leaderboard, statistics, table
from aft_harness.results.pairing import compare_samples, read_samples, select
from aft_harness.results.runs import read_runs, rows
from aft_harness.slices import Slice


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics and disks take their time; how much of it does not matter here."""
    monkeypatch.setattr(statistics, "RESAMPLES", 9)
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def samples_file(rng: Random, samples: list[Any]) -> bytes:
    """A samples file in which something is wrong."""
    if rng.random() < 0.7:
        samples = altered(rng, samples)
        samples = samples if isinstance(samples, list) else [samples]
    content = b"".join(as_json(rng, line) + b"\n" for line in samples)
    return spoilt(rng, content) if rng.random() < 0.4 else content


def test_samples(tmp_path: Path) -> None:
    rng = Random(0)
    good = lines([0, 1, 1, 0])
    path = tmp_path / "samples_x_2026-01-01T00-00-00.jsonl"
    baseline = {(line["doc_hash"], line["doc_id"]): line for line in good}

    def act() -> None:
        samples = read_samples(tmp_path, "x", rng.choice((None, None, None, "none", "a\nb")))
        compare_samples(baseline, samples, "acc")
        list(table.sentence(compare_samples(select(samples, Slice(0, 2)), select(samples, Slice(0, 2)), "acc")))

    for _ in range(INPUTS):
        write(path, samples_file(rng, good))
        one_line_or_fine(act)


def test_runs(tmp_path: Path) -> None:
    rng = Random(0)
    runs = [run({"b": lines([0, 1])}), run({"b": lines([0, 1])}, "s"), run({"b": lines([0, 1])}, "t", 1)]
    files: dict[Path, tuple[Any, list[Any]]] = {}
    for place, each in enumerate(runs):
        stamp = f"2026-01-0{place + 1}"
        files[tmp_path / f"results_{stamp}.json"] = dict(each.results), list(each.samples["b"])

    def write_run(path: Path, results: bytes, samples: bytes) -> None:
        write(path, results)
        write(path.with_name(f"samples_b_{path.stem.removeprefix('results_')}.jsonl"), samples)

    def act() -> None:
        made = rows(read_runs(tmp_path))
        if rng.random() < 0.2:  # see below for wrong rows
            table.render(table.to_frame(leaderboard.corrected(made)), rng.choice(table.FORMS))

    for path, (results, samples) in files.items():
        write_run(path, json.dumps(results).encode(), b"".join(as_json(rng, line) + b"\n" for line in samples))
    act()  # with nothing wrong
    for _ in range(INPUTS):
        path = rng.choice(list(files))
        results, samples = files[path]
        text, rest = as_json(rng, results), b"".join(as_json(rng, line) + b"\n" for line in samples)
        kind = rng.random()
        if kind < 0.5:
            write_run(path, as_json(rng, altered(rng, results)), rest)
        elif kind < 0.6:
            write_run(path, spoilt(rng, text), rest)
        elif kind < 0.7:  # wrong alike in every run
            key = rng.choice(("doc_id", "filter", "acc", "metrics", "prompt_hash", "target_hash"))
            wrong = rng.choice(WRONG)
            for each, (told, good) in files.items():
                write_run(
                    each, as_json(rng, told), b"".join(as_json(rng, {**line, key: wrong}) + b"\n" for line in good)
                )
        else:
            write_run(path, text, samples_file(rng, samples))
        one_line_or_fine(act)
        for each, (told, good) in files.items():
            write_run(each, json.dumps(told).encode(), b"".join(as_json(rng, line) + b"\n" for line in good))


def test_leaderboards(tmp_path: Path) -> None:
    rng = Random(0)
    path = tmp_path / "l.csv"
    steered = [run({"b": lines([1, seed, 1])}, f"s{seed}", seed) for seed in (0, 1)]
    found = rows([run({"b": lines([0, 0, 1])}), *steered])
    leaderboard.add(path, found)
    content = path.read_bytes()
    head, *body = content.decode().splitlines()

    def act() -> None:
        frame = leaderboard.load(path)
        if rng.random() < 0.2:
            table.render(frame, rng.choice(table.FORMS))
        if rng.random() < 0.2:
            leaderboard.add(path, found)

    for _ in range(INPUTS):
        if rng.random() < 0.5:
            write(path, spoilt(rng, content))
        else:
            cells = rng.choice(body).split(",")
            cells[rng.randrange(len(cells))] = str(rng.choice(WRONG)).replace("\n", "").replace('"', "")
            added = [cells, cells[:-1], [*cells, "more"], [*cells, *cells]][min(3, rng.randrange(12))]
            text = "\n".join([head, *body, ",".join(added)])
            write(path, f"{text}\n".encode("utf-8", "surrogatepass"))
        one_line_or_fine(act)


def test_rows_from_elsewhere(tmp_path: Path) -> None:
    rng = Random(0)
    (row,) = rows([run({"b": lines([0, 0, 1])}), run({"b": lines([1, 0, 1])}, "s")])
    for place in range(INPUTS // 10):
        wrong = {**row, rng.choice(list(row)): rng.choice(WRONG)}
        one_line_or_fine(lambda wrong=wrong: table.render(table.to_frame([row, wrong]), rng.choice(table.FORMS)))  # type: ignore[misc]
        if place % 20 == 0:
            one_line_or_fine(lambda wrong=wrong: leaderboard.add(tmp_path / "l.csv", [wrong, row]))  # type: ignore[misc]
