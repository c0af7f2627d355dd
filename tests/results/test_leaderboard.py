from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_runs import lines, run

from aft_harness.errors import FileError, TaskError
from aft_harness.results.leaderboard import add, corrected, load, merged
from aft_harness.results.runs import rows
from aft_harness.results.statistics import exact_mcnemar, holm
from aft_harness.results.table import COLUMNS, LATER, POOLED, render, to_csv, to_frame


def test_adding_twice_adds_nothing_and_other_numbers_replace(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    baseline = run({"b": lines([0, 0, 1])})
    first = rows([baseline, run({"b": lines([1, 0, 1])}, "s")])
    assert add(path, first) == (1, 0, 0)
    content = path.read_bytes()
    assert add(path, first) == (0, 0, 0) and path.read_bytes() == content
    assert add(path, rows([baseline, run({"b": lines([1, 1, 1])}, "s")])) == (0, 1, 0)
    assert load(path)["gained"].tolist() == [2]
    pd.testing.assert_frame_equal(load(path), load(path))


def test_other_prompts_and_fewer_documents_are_rows_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    before, after = [0] * 12, [1] * 8 + [0] * 4
    plain = rows([run({"b": lines(before)}), run({"b": lines(after)}, "s")])
    chat = rows([run({"b": lines(before, prompt="chat")}), run({"b": lines(before, prompt="chat")}, "s")])
    glance = rows([run({"b": lines([0])}), run({"b": lines([0])}, "s")])
    assert add(path, plain) == (1, 0, 0) and add(path, chat) == (1, 0, 0)
    assert add(path, glance) == (1, 0, 2)  # nothing makes way for a first look at one document
    assert sorted(zip(load(path)["n"], load(path)["gained"], strict=True)) == [(1, 0), (12, 0), (12, 8)]
    assert load(path)["p_holm"].tolist() == pytest.approx(holm(load(path)["p_value"].tolist()))
    for again in (plain, chat, glance):
        assert add(path, again)[:2] == (0, 0)
    assert len({(row["documents_sha256"], row["prompts_sha256"]) for row in (*plain, *chat, *glance)}) == 3
    assert plain[0]["documents_sha256"] == chat[0]["documents_sha256"] != glance[0]["documents_sha256"]
    # Whoever asks for it replaces what was measured on other documents.
    assert add(path, plain, replace=True) == (0, 0, 0)
    more = rows([run({"b": lines([*before, 0])}), run({"b": lines([*after, 1])}, "s")])
    assert add(path, more, replace=True) == (0, 1, 0) and load(path)["n"].tolist() == [13]


def test_a_row_that_pools_fewer_seeds_replaces_none_that_pools_more(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    runs = [run({"b": lines([0, 0, 1, 1])}), *(run({"b": lines([1, s % 2, 1, 0])}, f"s{s}", s) for s in range(3))]
    assert add(path, rows(runs)) == (4, 0, 0)
    assert add(path, rows(runs[:3])) == (0, 0, 1)
    assert load(path).set_index("seed").loc[POOLED, "seeds"] == 3
    assert add(path, rows(runs[:3]), replace=True) == (0, 1, 0)
    assert load(path).set_index("seed").loc[POOLED, "seeds"] == 2


def test_boosters_of_one_name_that_were_made_otherwise_are_pooled_apart(tmp_path: Path) -> None:
    made = [
        run({"b": lines([1, seed, 1])}, f"s{seed}{n}{objective}", seed, trained_n=n, objective=objective)
        for n, objective in [(100, "choice"), (500, "choice"), (500, "answer")]
        for seed in (0, 1)
    ]
    add(tmp_path / "l.csv", rows([run({"b": lines([0, 0, 1])}), *made]))
    table = load(tmp_path / "l.csv")
    pooled = table[table["seed"] == POOLED]
    assert set(pooled["booster"]) == {"aft a L3-4"}
    assert sorted(zip(pooled["trained_n"], pooled["objective"], strict=True)) == [
        (100, "choice"),
        (500, "answer"),
        (500, "choice"),
    ]


def test_a_leaderboard_of_an_earlier_version_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    found = rows([run({"b": lines([0, 0, 1])}), run({"b": lines([1, 0, 1])}, "s")])
    add(path, found)
    pd.read_csv(path, dtype=str, keep_default_na=False).drop(columns=list(LATER)).to_csv(path, index=False)
    old = load(path)
    assert tuple(old) == COLUMNS and old["documents_sha256"].tolist() == [""] and old["seeds"].isna().all()
    # Other numbers may be those of other prompts; the same ones are the same row, which now tells more.
    other = rows([run({"b": lines([1, 0, 1], prompt="chat")}), run({"b": lines([1, 0, 1], prompt="chat")}, "s")])
    assert add(path, other) == (1, 0, 1)
    assert add(path, found) == (0, 1, 0) and len(load(path)) == 2
    assert load(path)["documents_sha256"].tolist() == [found[0]["documents_sha256"]] * 2


def test_published_leaderboards_load() -> None:
    for path in (Path(__file__).parents[2] / "leaderboards").glob("*.csv"):
        assert len(load(path))


def test_two_rows_about_the_same_in_a_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    (row,) = rows([run({"b": lines([0, 0, 1])}), run({"b": lines([1, 0, 1])}, "s")])
    to_csv(to_frame([row, {**row, "steered": 0.5}]), path)
    with pytest.raises(
        TaskError, match=r"l\.csv: two rows for the same result have different numbers \(aft a L3-4 on b"
    ):
        add(path, [row])


@pytest.mark.parametrize("changes", [{"booster": "=1+1"}, {"task": "a\nb"}, {"num_fewshot": None}, {"method": None}])
def test_a_row_is_known_again_whatever_its_cells_hold(tmp_path: Path, changes: dict[str, str | None]) -> None:
    (row,) = rows([run({"b": lines([0, 0, 1])}), run({"b": lines([1, 0, 1])}, "s")])
    assert add(tmp_path / "l.csv", [{**row, **changes}]) == (1, 0, 0)
    assert add(tmp_path / "l.csv", [{**row, **changes}]) == (0, 0, 0)
    # A count that is missing differs from one that is there.
    assert add(tmp_path / "l.csv", [{**row, **changes, "gained": None}]) == (0, 1, 0)


def test_a_third_seed_takes_the_place_of_the_pooled_row_of_two(tmp_path: Path) -> None:
    before, outcomes = [0, 0, 1, 1, 0, 0, 1], {0: [1, 0, 1, 1, 1, 0, 0], 1: [1, 1, 1, 0, 1, 0, 1]}
    runs = [run({"b": lines(before)}), *(run({"b": lines(got)}, f"s{seed}", seed) for seed, got in outcomes.items())]
    add(tmp_path / "l.csv", rows(runs))
    table = load(tmp_path / "l.csv")
    assert table[table["p_holm"].notna()]["seed"].tolist() == [POOLED]  # documents, not runs, are the unit
    third = rows([*runs, run({"b": lines([1, 1, 1, 1, 1, 1, 1])}, "s2", 2)])
    assert add(tmp_path / "l.csv", third) == (1, 1, 0)
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


@pytest.mark.parametrize("seeds", [2, 3, 5, 6, 7, 10])
def test_seeds_that_change_nothing_claim_nothing(seeds: int) -> None:
    # A sum of equal floats divided by their number is not always that float: (x + x + x) / 3 != x for every fourth x.
    outcomes = np.random.default_rng(seeds).random(120).tolist()
    steered = [run({"b": lines(outcomes, "f1")}, f"s{seed}", seed) for seed in range(seeds)]
    table = corrected(rows([run({"b": lines(outcomes, "f1")}), *steered]))
    assert [row["seed"] for row in table].count(POOLED) == 1
    for row in table:
        assert (row["delta"], row["p_value"]) == (0.0, 1.0)
        assert row["p_holm"] in (1.0, None)


def test_ten_thousand_rows_are_added_and_shown(tmp_path: Path) -> None:
    (row,) = rows([run({"b": lines([0, 0, 1])}), run({"b": lines([1, 0, 1])}, "s")])
    add(tmp_path / "l.csv", [{**row, "booster_sha256": f"{place:064x}"} for place in range(10_000)])
    shown = render(load(tmp_path / "l.csv"), "md").splitlines()
    assert len(shown) == 10_002 and shown[2].startswith("| toy | aft a L3-4 | 1 | 0 | b | acc | 3 | 33.3% | 66.7% |")


def test_another_table_is_no_leaderboard(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("a,b\n1,2\n")
    with pytest.raises(TaskError, match=r"l\.csv: not a leaderboard \(column model is missing\)"):
        add(tmp_path / "l.csv", [])
    (tmp_path / "l.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TaskError, match="cannot be read"):
        load(tmp_path / "l.csv")
    (tmp_path / "l.csv").write_text(f"{','.join(COLUMNS)}\n{','.join(['x'] * len(COLUMNS))}\n")
    with pytest.raises(TaskError, match=r"l\.csv: column \w+: .*'x'"):
        load(tmp_path / "l.csv")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"nowhere/l\.csv: the folder does not exist"):
        add(tmp_path / "nowhere" / "l.csv", [])
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / ".l.csv.lock").mkdir()  # no one, not even root, opens a folder for writing
    with pytest.raises(FileError, match=r"^\S*/l\.csv: the folder cannot be written to or locked \(Is a directory\)$"):
        add(tmp_path / "l.csv", [])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(FileError, match=r"^\S*/l\.csv: the folder cannot be written to or locked \(Permission denied"):
        add(tmp_path / "l.csv", [])


def test_tables_become_one_with_one_correction() -> None:
    first = rows([run({"a": lines([0] * 9)}), run({"a": lines([1] * 9)}, "s")])
    second = rows([run({"b": lines([0] * 9)}), run({"b": lines([1] * 8 + [0])}, "s")])
    found = merged([corrected(first), corrected(second)])
    assert [row["task"] for row in found] == ["a", "b"]
    assert [row["p_holm"] for row in found] == holm([row["p_value"] for row in found])
    assert merged([first]) == corrected(first)


def test_of_rows_about_the_same_the_last_counts_whatever_the_booster_is_called() -> None:
    (row,) = rows([run({"a": lines([0, 0])}), run({"a": lines([1, 0])}, "s")])
    named = {**row, "booster": "mine", "date": "later"}
    assert [(each["booster"], each["p_holm"]) for each in merged([[row], [named]])] == [("mine", row["p_value"])]
    assert len(merged([[row], [{**named, "documents_sha256": "others"}]])) == 2
    assert len(merged([[row], [{**named, "sweep": "s"}]])) == 2  # the points of a sweep stay together
    unknown = {**row, "booster_sha256": ""}
    assert len(merged([[unknown], [{**unknown, "booster": "another"}]])) == 2


def test_a_row_that_pools_more_seeds_stays() -> None:
    runs = [run({"a": lines([0, 0])}), *(run({"a": lines([1, 0])}, f"s{seed}", seed) for seed in (0, 1))]
    (pooled,) = [row for row in rows(runs) if row["seed"] == POOLED]
    fewer = {**pooled, "seeds": 1, "booster_sha256": "other", "date": "later"}
    assert [row["seeds"] for row in merged([[{**pooled, "booster_sha256": "other"}], [fewer]])] == [2]
