from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_runs import lines, run

<<<<<<< HEAD
from aft_harness.errors import FileError, TaskError
from aft_harness.results.leaderboard import add, corrected, load
from aft_harness.results.runs import rows
from aft_harness.results.statistics import exact_mcnemar, holm
from aft_harness.results.table import COLUMNS, POOLED, render
=======
from aft_harness.errors import TaskError
from aft_harness.results import leaderboard
from aft_harness.results.leaderboard import COLUMNS, POOLED, Run, add, load, read_runs, rows, shown
from aft_harness.results.plots import plot_transfer
from aft_harness.results.statistics import compare, exact_mcnemar, holm

BASE = {"name": "toy", "revision": None, "fingerprint": "f" * 64, "architecture": "ToyForCausalLM"}


def lines(outcomes: Any, metric: str = "acc", prompt: str = "p") -> list[dict[str, Any]]:
    return [
        {
            **{"doc_id": place, "doc_hash": f"d{place}", "prompt_hash": f"{prompt}{place}", "target_hash": "t"},
            **{"filter": "none", "metrics": [metric, "sum"], metric: float(outcome), "sum": [1.0, 2]},
        }
        for place, outcome in enumerate(outcomes)
    ]


def run(samples: dict[str, list[dict[str, Any]]], sha: str = "", seed: int = 0, base: Any = None, **told: Any) -> Run:
    aft: dict[str, Any] = {
        "version": "1",
        "base_model": {**BASE, **(base or {})},
        "booster_sha256": sha or None,
        "device": "cpu",
    }
    if sha:
        made = {"layers": [3, 4], "strength": 1.0, "method": "aft", "objective": "choice", "trained_on": ["a"]}
        aft |= {**made, "trained_n": 9, "seed": seed, "booster_parameters": 64, **told}
    results = {
        "config": {"aft": aft, "model_num_parameters": 100, "model_dtype": "torch.float32", "model_revision": "main"},
        "configs": {task: {} for task in samples},
        "versions": dict.fromkeys(samples, 1.0),
        "n-shot": dict.fromkeys(samples, 0),
        "lm_eval_version": "0.4.13",
        "date": 1700000000.0 + seed,
        "model_name": "toy",
    }
    return Run(results, samples, sha or "baseline")


def test_a_row_tells_what_ran_and_what_came_out() -> None:
    before, after = [0, 0, 1, 1, 0, 0], [1, 1, 1, 0, 1, 1]
    (row,) = rows([run({"b": lines(before)}), run({"b": lines(after)}, "s" * 64)])
    assert tuple(row) == COLUMNS
    assert (row["model"], row["revision"], row["architecture"], row["parameters"]) == (
        "toy",
        "f" * 12,
        "ToyForCausalLM",
        100,
    )
    assert (row["booster"], row["layers"], row["trained_on"], row["seed"]) == ("aft a L3-4", "3-4", "a", "0")
    assert (row["n"], row["gained"], row["lost"], row["transfer"]) == (6, 4, 1, 1)
    assert row["p_value"] == exact_mcnemar(4, 1) == row["p_holm"]
    assert (row["delta"], row["dtype"], row["date"]) == (pytest.approx(0.5), "float32", "2023-11-14")
    (own,) = rows([run({"a": lines(before)}), run({"a": lines(after)}, "s")])
    assert own["transfer"] == 0


def test_what_is_no_pair_is_refused_and_named() -> None:
    steered = run({"b": lines([1, 0])}, "s")
    with pytest.raises(TaskError, match="s: has no baseline of toy on b"):
        rows([run({"a": lines([1, 0])}), steered])
    with pytest.raises(TaskError, match="no baseline"):
        rows([run({"b": lines([1, 0])}, base={"fingerprint": "e" * 64}), steered])
    with pytest.raises(TaskError, match="s and baseline: b: document 0 has another prompt_hash"):
        rows([run({"b": lines([1, 0], prompt="q")}), steered])
    with pytest.raises(TaskError, match="different documents"):
        rows([run({"b": lines([1, 0, 1])}), steered])
    # Of several baselines the one on the same documents counts.
    assert len(rows([run({"b": lines([1, 0, 1])}), run({"b": lines([1, 0])}), run({"b": lines([1])}), steered])) == 1


def test_a_stock_baseline_is_known_by_name_and_size() -> None:
    stock = run({"b": lines([1, 0])})
    del stock.results["config"]["aft"]
    steered = run({"b": lines([1, 1])}, "s")
    assert rows([stock, steered])[0]["delta"] == 0.5
    stock.results["config"]["model_num_parameters"] = 101  # type: ignore[index]
    with pytest.raises(TaskError, match="no baseline"):
        rows([stock, steered])


def test_seeds_are_pooled_document_by_document(tmp_path: Path) -> None:
    before, outcomes = [0, 0, 1, 1, 0, 0, 1], {0: [1, 0, 1, 1, 1, 0, 0], 1: [1, 1, 1, 0, 1, 0, 1]}
    runs = [run({"b": lines(before)}), *(run({"b": lines(got)}, f"s{seed}", seed) for seed, got in outcomes.items())]
    found = rows(runs)
    assert [row["seed"] for row in found] == ["0", "1", POOLED]
    expected = compare(before, np.mean(list(outcomes.values()), axis=0).tolist(), means=True)
    pooled = found[-1]
    assert (pooled["p_value"], pooled["ci_low"], pooled["steered"]) == (
        expected.p_value,
        expected.ci_low,
        pytest.approx(expected.steered),
    )
    assert pooled["gained"] is None and pooled["booster_sha256"] not in ("s0", "s1")
    add(tmp_path / "l.csv", found)
    table = load(tmp_path / "l.csv")
    assert table[table["p_holm"].notna()]["seed"].tolist() == [POOLED]  # documents, not runs, are the unit
    # A third seed takes the place of the pooled row of two.
    third = rows([*runs, run({"b": lines([1, 1, 1, 1, 1, 1, 1])}, "s2", 2)])
    assert add(tmp_path / "l.csv", third) == (1, 1)
    table = load(tmp_path / "l.csv")
    assert sorted(table["seed"]) == ["0", "1", "2", POOLED]
    # Other strengths are other boosters.
    apart = rows([runs[0], runs[1], run({"b": lines(outcomes[1])}, "s1", 1, strength=0.5)])
    assert POOLED not in [row["seed"] for row in apart]
>>>>>>> tooling


def test_adding_twice_adds_nothing_and_other_numbers_replace(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    baseline = run({"b": lines([0, 0, 1])})
    first = rows([baseline, run({"b": lines([1, 0, 1])}, "s")])
    assert add(path, first) == (1, 0)
    content = path.read_bytes()
    assert add(path, first) == (0, 0) and path.read_bytes() == content
    assert add(path, rows([baseline, run({"b": lines([1, 1, 1])}, "s")])) == (0, 1)
    assert load(path)["gained"].tolist() == [2]
    pd.testing.assert_frame_equal(load(path), load(path))


@pytest.mark.parametrize("changes", [{"booster": "=1+1"}, {"task": "a\nb"}, {"num_fewshot": None}, {"method": None}])
def test_a_row_is_known_again_whatever_its_cells_hold(tmp_path: Path, changes: dict[str, str | None]) -> None:
    (row,) = rows([run({"b": lines([0, 0, 1])}), run({"b": lines([1, 0, 1])}, "s")])
    assert add(tmp_path / "l.csv", [{**row, **changes}]) == (1, 0)
    assert add(tmp_path / "l.csv", [{**row, **changes}]) == (0, 0)
    # A count that is missing differs from one that is there.
    assert add(tmp_path / "l.csv", [{**row, **changes, "gained": None}]) == (0, 1)


def test_a_third_seed_takes_the_place_of_the_pooled_row_of_two(tmp_path: Path) -> None:
    before, outcomes = [0, 0, 1, 1, 0, 0, 1], {0: [1, 0, 1, 1, 1, 0, 0], 1: [1, 1, 1, 0, 1, 0, 1]}
    runs = [run({"b": lines(before)}), *(run({"b": lines(got)}, f"s{seed}", seed) for seed, got in outcomes.items())]
    add(tmp_path / "l.csv", rows(runs))
    table = load(tmp_path / "l.csv")
    assert table[table["p_holm"].notna()]["seed"].tolist() == [POOLED]  # documents, not runs, are the unit
    third = rows([*runs, run({"b": lines([1, 1, 1, 1, 1, 1, 1])}, "s2", 2)])
    assert add(tmp_path / "l.csv", third) == (1, 1)
    table = load(tmp_path / "l.csv")
    assert sorted(table["seed"]) == ["0", "1", "2", POOLED]


def test_the_family_is_a_models_first_metrics_at_full_strength(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tasks = {f"t{place}": lines(rng.integers(0, 2, 40)) for place in range(4)}
    got = {task: lines(rng.integers(0, 2, 40)) for task in tasks}
    for sample in (*tasks["t0"], *got["t0"]):
        sample["metrics"] = ["acc", "acc_norm"]
        sample["acc_norm"] = sample["acc"]
    other = {"fingerprint": "e" * 64}
    path = tmp_path / "l.csv"
    add(path, rows([run(tasks), run(got, "s"), run(got, "half", strength=0.5)]))
    add(path, rows([run(tasks, base=other), run(got, "z", base=other)]))
    table = load(path)
    assert len(table) == 15
    family = table[table["p_holm"].notna()]
    assert set(family["metric"]) == {"acc"} and set(family["strength"]) == {1.0} and len(family) == 8
    for _, members in family.groupby("revision"):
        assert members["p_holm"].tolist() == pytest.approx(holm(members["p_value"].tolist()))
    # A row more makes the family larger, whoever adds it.
    add(path, rows([run(tasks), run(got, "t", trained_on=["c"])]))
    grown = load(path)
    grown = grown[grown["p_holm"].notna() & (grown["revision"] == "f" * 12)]
    assert len(grown) == 8 and grown["p_holm"].tolist() == pytest.approx(holm(grown["p_value"].tolist()))


def test_rows_are_corrected_without_a_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    tasks = {f"t{place}": lines(rng.integers(0, 2, 40)) for place in range(3)}
    made = rows([run(tasks), run({task: lines(rng.integers(0, 2, 40)) for task in tasks}, "s")])
    uncorrected = [dict(row) for row in made]
    done = corrected(made)
    assert [row["p_holm"] for row in done] == pytest.approx(holm([row["p_value"] for row in done]))
    assert made == uncorrected and corrected(done) == done
    add(tmp_path / "l.csv", made)
    assert load(tmp_path / "l.csv")["p_holm"].tolist() == [row["p_holm"] for row in done]


def _add_one(path: Path, sha: str) -> None:
    add(path, rows([run({"b": lines([0, 0, 1])}), run({"b": lines([1, 0, 1])}, sha, trained_on=[sha])]))


def test_processes_may_add_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    path = tmp_path / "l.csv"
    workers = [context.Process(target=_add_one, args=(path, f"s{place}")) for place in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    table = load(path)
    assert sorted(table["booster_sha256"]) == [f"s{place}" for place in range(6)]
    assert table["p_holm"].tolist() == pytest.approx(holm(table["p_value"].tolist()))


def test_under_no_effect_few_leaderboards_claim_one() -> None:
    rng = np.random.default_rng(0)
    claimed = 0
    for _ in range(200):
        table = []
        for place in range(10):
            before = rng.random(120) < 0.5
            swapped = rng.random(120) < 0.3
            gained = swapped & (rng.random(120) < 0.5)
            paired_p = exact_mcnemar(int(gained.sum()), int((swapped & ~gained).sum()))
            row = dict.fromkeys(COLUMNS, "") | {"task": f"t{place}", "p_value": paired_p, "p_holm": paired_p}
            table.append(row | {"n": int(before.size)})
        claimed += min(row["p_holm"] for row in corrected(table)) < 0.05
    assert claimed <= 0.05 * 200


def test_ten_thousand_rows_are_added_and_shown(tmp_path: Path) -> None:
    (row,) = rows([run({"b": lines([0, 0, 1])}), run({"b": lines([1, 0, 1])}, "s")])
    add(tmp_path / "l.csv", [{**row, "booster_sha256": f"{place:064x}"} for place in range(10_000)])
    shown = render(load(tmp_path / "l.csv"), "md").splitlines()
    assert len(shown) == 10_002 and shown[2].startswith("| toy | aft a L3-4 | 1 | 0 | b | acc | 3 | 33.3% | 66.7% |")


def test_another_table_is_no_leaderboard(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("a,b\n1,2\n")
    with pytest.raises(TaskError, match=r"l\.csv: is no leaderboard: it lacks the column model"):
        add(tmp_path / "l.csv", [])
    (tmp_path / "l.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TaskError, match="cannot be read"):
        load(tmp_path / "l.csv")
    (tmp_path / "l.csv").write_text(f"{','.join(COLUMNS)}\n{','.join(['x'] * len(COLUMNS))}\n")
    with pytest.raises(TaskError, match=r"l\.csv: column \w+: .*'x'"):
        load(tmp_path / "l.csv")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"nowhere/l\.csv: its folder does not exist"):
        add(tmp_path / "nowhere" / "l.csv", [])
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / ".l.csv.lock").mkdir()  # no one, not even root, opens a folder for writing
    with pytest.raises(FileError, match=r"^\S*/l\.csv: its folder cannot be written to or locked \(Is a directory\)$"):
        add(tmp_path / "l.csv", [])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(FileError, match=r"^\S*/l\.csv: its folder cannot be written to or locked \(Permission denied"):
        add(tmp_path / "l.csv", [])
