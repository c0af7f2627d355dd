from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic_runs import lines, run, write

from aft_harness.errors import TaskError
from aft_harness.results.runs import Run, read_runs, rows
from aft_harness.results.statistics import compare, exact_mcnemar
from aft_harness.results.table import COLUMNS, POOLED


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
    (same_task,) = rows([run({"a": lines(before)}), run({"a": lines(after)}, "s")])
    assert same_task["transfer"] == 0


def test_a_booster_is_called_by_the_name_that_its_user_gave() -> None:
    baseline, samples = run({"b": lines([0, 0, 1])}), {"b": lines([1, 0, 1])}
    assert [row["booster"] for row in rows([baseline, run(samples, "s", name="mine.safetensors")])] == [
        "mine.safetensors"
    ]
    # Under one name, seeds are pooled; under two names they are two boosters.
    seeds = rows([baseline, run(samples, "s", 0, name="mine"), run(samples, "t", 1, name="mine")])
    assert [(row["booster"], row["seed"]) for row in seeds] == [("mine", "0"), ("mine", "1"), ("mine", POOLED)]
    two = rows([baseline, run(samples, "s", 0, name="mine"), run(samples, "t", 1, name="yours")])
    assert [(row["booster"], row["seed"]) for row in two] == [("mine", "0"), ("yours", "1")]


def test_what_is_no_pair_is_refused_and_named() -> None:
    steered = run({"b": lines([1, 0])}, "s")
    with pytest.raises(TaskError, match="s: no baseline of toy on b"):
        rows([run({"a": lines([1, 0])}), steered])
    with pytest.raises(TaskError, match="no baseline"):
        rows([run({"b": lines([1, 0])}, base={"fingerprint": "e" * 64}), steered])
    with pytest.raises(TaskError, match="s and baseline: b: document 0 has a different prompt_hash"):
        rows([run({"b": lines([1, 0], prompt="q")}), steered])
    with pytest.raises(TaskError, match="different documents"):
        rows([run({"b": lines([1, 0, 1])}), steered])
    # Of several baselines the one on the same documents counts.
    assert len(rows([run({"b": lines([1, 0, 1])}), run({"b": lines([1, 0])}), run({"b": lines([1])}), steered])) == 1


def test_a_run_is_compared_with_the_baseline_that_was_asked_the_same() -> None:
    plain, chat = (run({"b": lines([1, 0], prompt=prompt)}) for prompt in ("p", "chat"))
    steered = run({"b": lines([1, 1])}, "s")
    for baselines in ([plain, chat], [chat, plain]):
        assert rows([*baselines, steered])[0]["delta"] == 0.5
    # The last of several that were.
    assert rows([run({"b": lines([0, 0])}), plain, chat, steered])[0]["baseline"] == 0.5


def test_seeds_are_pooled_where_they_were_asked_the_same() -> None:
    baselines = [run({"b": lines([1, 0], prompt=prompt)}) for prompt in ("p", "chat")]
    steered = [run({"b": lines([1, 1], prompt=prompt)}, "s", 0) for prompt in ("p", "chat")]
    assert [row["seed"] for row in rows([*baselines, *steered])] == ["0", "0"]
    more = run({"b": lines([1, 1], prompt="chat")}, "t", 1)
    pooled = rows([*baselines, *steered, more])[-1]
    assert (pooled["seed"], pooled["seeds"]) == (POOLED, 2)
    assert pooled["prompts_sha256"] == rows([*baselines, more])[0]["prompts_sha256"]
    # Nor are two precisions one booster.
    half = run({"b": lines([1, 0])}), run({"b": lines([1, 1])}, "t", 1)
    for each in half:
        each.results["config"]["model_dtype"] = "torch.bfloat16"
    assert [row["seed"] for row in rows([baselines[0], steered[0], *half])] == ["0", "1"]


def test_a_stock_baseline_is_known_by_name_and_size() -> None:
    stock = run({"b": lines([1, 0])})
    del stock.results["config"]["aft"]
    steered = run({"b": lines([1, 1])}, "s")
    assert stock.variant is None and not stock.steered and steered.steered
    assert rows([stock, steered])[0]["delta"] == 0.5
    stock.results["config"]["model_num_parameters"] = 101
    with pytest.raises(TaskError, match="no baseline"):
        rows([stock, steered])


def test_models_without_a_fingerprint_are_told_apart_by_the_rest() -> None:
    steered = run({"b": lines([1, 1])}, "s", base={"fingerprint": None})
    assert len(rows([run({"b": lines([1, 0])}, base={"fingerprint": None}), steered])) == 1
    with pytest.raises(TaskError, match="no baseline of toy"):
        rows([run({"b": lines([1, 0])}, base={"fingerprint": None, "name": "other"}), steered])


def test_a_malformed_record_is_one_line_that_names_the_run() -> None:
    wrong = run({"b": lines([1])}, "s", layers="four")
    with pytest.raises(TaskError, match=r"^s: malformed results: config\.aft\.layers: .*valid tuple$"):
        rows([run({"b": lines([1])}), wrong])


def test_seeds_are_pooled_document_by_document() -> None:
    before, outcomes = [0, 0, 1, 1, 0, 0, 1], {0: [1, 0, 1, 1, 1, 0, 0], 1: [1, 1, 1, 0, 1, 0, 1]}
    runs = [run({"b": lines(before)}), *(run({"b": lines(got)}, f"s{seed}", seed) for seed, got in outcomes.items())]
    made = rows(runs)
    assert [row["seed"] for row in made] == ["0", "1", POOLED]
    expected = compare(before, np.mean(list(outcomes.values()), axis=0).tolist(), means=True)
    pooled = made[-1]
    assert (pooled["p_value"], pooled["ci_low"], pooled["steered"]) == (
        expected.p_value,
        expected.ci_low,
        pytest.approx(expected.steered),
    )
    assert pooled["gained"] is None and pooled["booster_sha256"] not in ("s0", "s1")
    # Other strengths are other boosters.
    apart = rows([runs[0], runs[1], run({"b": lines(outcomes[1])}, "s1", 1, strength=0.5)])
    assert POOLED not in [row["seed"] for row in apart]


def test_folders_of_lm_eval_are_read_back(tmp_path: Path) -> None:
    baseline, steered = run({"b": lines([0, 0, 1])}), run({"b": lines([1, 0, 1])}, "s")
    for place, each in enumerate((baseline, steered)):
        write(each, tmp_path / "toy", f"2026-01-0{place + 1}T00-00-00.000000")
    assert rows(read_runs(tmp_path)) == rows([baseline, steered])
    with pytest.raises(TaskError, match="no results"):
        read_runs(tmp_path / "nowhere")
    next((tmp_path / "toy").glob("samples_*")).unlink()
    with pytest.raises(TaskError, match="--log_samples"):
        read_runs(tmp_path)


def test_malformed_files_are_one_line_that_names_them(tmp_path: Path) -> None:
    path = write(run({"b": lines([0, 1])}), tmp_path, "2026-01-01")
    good = json.loads(path.read_text())
    for wrong in ("{", "[]", "\udcff", json.dumps({**good, "configs": []}), json.dumps({**good, "date": None})):
        path.write_bytes(wrong.encode("utf-8", "surrogateescape"))
        with pytest.raises(TaskError, match=r"^\S*results_2026-01-01\.json: not an lm_eval results file[^\n]*$"):
            read_runs(tmp_path)
    path.write_text(json.dumps(good))
    path.with_name("samples_b_2026-01-01.jsonl").write_text('{"doc_id": 0')
    with pytest.raises(TaskError, match=r"samples_b_2026-01-01\.jsonl: line 1 is not valid JSON"):
        read_runs(tmp_path)


def test_text_with_a_line_separator_is_one_line(tmp_path: Path) -> None:
    samples = [{**line, "doc": {"question": "a\u2028b\u0085c\x0bd"}} for line in lines([0, 1])]
    write(run({"b": samples}), tmp_path, "2026-01-01")
    (read,) = read_runs(tmp_path)
    assert isinstance(read, Run) and read.samples["b"] == samples
