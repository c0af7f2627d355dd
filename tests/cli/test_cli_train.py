"""`aft train`: from options to a booster, its account and its curves."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from cli_cases import TOYS, aft, assert_refused, train

import aft_harness
from aft_harness.boosters.booster import Booster
from aft_harness.cli.drawing import selections
from aft_harness.errors import FileError
from aft_harness.harness.selection import TRAINING_DOCUMENTS, TaskSelection


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_train_writes_a_booster_and_says_what_it_did(model: str, in_tmp: Path) -> None:
    result = train(model, "--limit", "8", "--dev_docs", "4", "--epochs", "2", "--layers", "1,2", "--num_fewshot", "1")
    assert result.exit_code == 0, result.stderr
    assert "8 training documents and 4 development documents from train[0:24], 1 dropped" in result.stderr
    for words in ("before", "after", "training objective", "on 4 development documents", "epoch 1", ", development "):
        assert words in result.stdout
    for words in ("layer 1", "layer 2", "of the residual stream's norm", "cost", "* kept"):
        assert words in result.stdout
    booster = Booster.load("a.safetensors")
    assert booster.layers == (1, 2) and booster.provenance.tasks[0].num_fewshot == 1
    assert booster.sha256 in result.stdout
    assert os.listdir(in_tmp) == ["a.safetensors"]
    assert str(Path(model).parent) not in json.dumps(booster.provenance.to_json())
    shown = aft("show", "a.safetensors")
    assert shown.exit_code == 0
    for words in (booster.sha256, "aft, objective both", "toy_choice train[0:24]: 8 documents", "64 (hidden size 32)"):
        assert words in shown.stdout


def test_what_is_learned_is_shown_before_training_starts(model: str, in_tmp: Path) -> None:
    result = train(model, "--limit", "3", "--epochs", "1", "--target-field", "toy_text=sentence", tasks="toy_text")
    assert result.exit_code == 0, result.stderr
    lines = result.stderr.splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.startswith("First training document of")]
    prompt, answer = lines[start + 1 : start + 3]
    assert prompt.startswith("| Number ") and prompt.endswith("? Answer:")
    assert answer.startswith("| * ") and answer.endswith("_ was there")
    record = Booster.load("a.safetensors").provenance.tasks[0]
    assert record.target_field == "sentence"
    choices = train(model, "--limit", "3", "--epochs", "1", output="b.safetensors").stderr.splitlines()
    marks = [line[:4] for line in choices if line.startswith(("| * ", "| - "))]
    assert sorted(marks) == ["| * ", "| - ", "| - "]
    quiet = train(model, "--limit", "3", "--epochs", "1", "-q", output="c.safetensors")
    assert quiet.exit_code == 0 and "| * " not in quiet.stderr and "documents" not in quiet.stderr


def test_a_seed_makes_the_same_booster_on_any_run(model: str, in_tmp: Path) -> None:
    for name in ("a", "b"):
        assert train(model, "--limit", "6", "--epochs", "1", output=f"{name}.safetensors").exit_code == 0
    assert Booster.load("a.safetensors").sha256 == Booster.load("b.safetensors").sha256


def test_training_starts_from_a_booster_at_its_strength(model: str, in_tmp: Path) -> None:
    first = ["--limit", "6", "--epochs", "1", "--layer", "1"]
    assert train(model, *first).exit_code == 0
    begun = ["--limit", "1", "--epochs", "1", "--layer", "1", "--lr", "1e-9", "--start", "a.safetensors:2"]
    assert train(model, *begun, output="b.safetensors").exit_code == 0
    vectors = [Booster.load(f"{name}.safetensors").injections[1].tensors["vector"] for name in "ab"]
    torch.testing.assert_close(vectors[1], 2 * vectors[0])


def test_mixtures_take_limits_and_weights_by_task(model: str, in_tmp: Path) -> None:
    options = ["--limit", "6", "--limit", "toy_text=3", "--weight", "toy_text=0.5", "--epochs", "1"]
    assert train(model, *options, tasks="toy_choice,toy_text").exit_code == 0
    records = Booster.load("a.safetensors").provenance.tasks
    assert [(record.task, record.n_train, record.weight) for record in records] == [
        ("toy_choice", 6, 1.0),
        ("toy_text", 3, 0.5),
    ]


def test_the_number_of_training_documents_has_one_default_and_a_way_to_all() -> None:
    limits = [selection.limit for selection in selections(tasks="a,b,c", limit=["b=all", "c=7"])]
    assert limits == [600, None, 7]
    assert [selection.limit for selection in selections(tasks="a,b", limit=["all"])] == [None, None]
    # The same in Python, and in the help; a plan's is tested with plans.
    assert TRAINING_DOCUMENTS == TaskSelection("a").limit == 600
    assert inspect.signature(aft_harness.train).parameters["limit"].default == 600
    assert "[default: 600]" in " ".join(aft("train", "--help").stdout.split())


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, (1, 2, 3)),
        ("1-", (1, 2, 3)),
        ("1-2", (1, 2)),
        ("all", (0, 1, 2, 3)),
        ("middle", (2,)),
        ("3,0", (0, 3)),
    ],
)
def test_layers_are_named_by_one_grammar(
    layers: str | None, expected: tuple[int, ...], model: str, in_tmp: Path
) -> None:
    options = ["--limit", "2", "--epochs", "1", *(["--layers", layers] if layers else [])]
    result = train(model, *options)
    assert result.exit_code == 0, result.stderr
    assert Booster.load("a.safetensors").layers == expected


def test_automatic_layers_are_chosen_on_development_documents(model: str, in_tmp: Path) -> None:
    options = ["--limit", "6", "--epochs", "1", "--layer", "auto"]
    result = train(model, *options, "--dev-docs", "6")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("ranking loss") >= 3
    booster = Booster.load("a.safetensors")
    sweep = booster.provenance.layer_sweep
    assert sweep is not None and len(booster.layers) == 1 and len(sweep) >= 3
    assert booster.layers == (int(min(sweep, key=lambda layer: sweep[layer].loss)),)
    starred = [line.split("*")[0] for line in result.stdout.splitlines() if line.startswith("layer") and "*" in line]
    assert starred == [f"layer {booster.layers[0]}"]
    assert_refused(
        train(model, *options, output="b.safetensors"), 1, "layers are chosen on development documents; set some aside"
    )


@pytest.mark.parametrize(("name", "picture"), [("c.png", "c.png"), ("c.svg", "c.svg"), ("c.csv", "c.png")])
def test_curves_are_written_beside_the_booster(name: str, picture: str, model: str, in_tmp: Path) -> None:
    result = train(model, "--limit", "5", "--dev-docs", "2", "--epochs", "2", "--batch-size", "2", "--curves", name)
    assert result.exit_code == 0, result.stderr
    assert set(os.listdir(in_tmp)) == {"a.safetensors", "c.csv", picture}
    assert [line.split()[1] for line in result.stdout.splitlines() if line.startswith("curves")] == ["c.csv", picture]
    losses = pd.read_csv("c.csv")
    assert losses["step"].tolist() == list(range(1, 7))
    assert losses["development_loss"].notna().tolist() == [False, False, True] * 2


BAD_TRAINING = {
    "unknown task": (["--tasks", "toy_choise"], 1, "unknown task 'toy_choise'; did you mean toy_choice"),
    "no training split": (["--tasks", "toy_no_train"], 1, "toy_no_train has no training split"),
    "no tasks": (["--tasks", ","], 2, "'--tasks': no tasks given"),
    "negative layer": (["--layer", "-1"], 2, "layers '-1': expected all, or layers and ranges"),
    "layer too large": (["--layer", "4"], 1, "layer 4 is out of range: the model has layers 0 to 3"),
    "range too large": (["--layer", "4-8"], 1, "layer 4 is out of range: the model has layers 0 to 3"),
    "layer in words": (["--layer", "upper"], 2, "'--layer' / '--layers': layers 'upper'"),
    "limit of another task": (["--limit", "arc_easy=3"], 2, "'--limit': arc_easy=3: 'arc_easy' is not among --tasks"),
    "limit in words": (["--limit", "many"], 2, "'--limit': many: expected a number of documents"),
    "development documents": (["--dev-docs", "few"], 2, "'--dev-docs': few"),
    "weight": (["--weight", "toy_choice=-1"], 2, "'--weight': toy_choice=-1: expected a positive number"),
    "rows": (["--train-docs", "train[3"], 2, "'--train-docs': train[3"),
    "rate": (["--lr", "0"], 2, "'--lr'"),
    "infinite rate": (["--lr", "inf"], 2, "'--lr': inf is not a finite number"),
    "temperature": (["--temperature", "nan"], 2, "'--temperature': nan is not a finite number"),
    "memory": (["--memory", "0.001"], 1, "the model alone takes"),
    "cache limit": (["--cache-limit", "inf"], 2, "'--cache-limit': inf is not a finite number"),
    "limit of nothing": (["--limit", "0"], 2, "'--limit': 0: expected a number of documents, at least 1"),
    "target field": (["--tasks", "toy_text", "--target-field", "answr"], 1, "have no field 'answr'; they have"),
    "target field of another task": (["--target-field", "toy_text=answer"], 2, "'toy_text' is not among --tasks"),
    "target of a scorer": (["--tasks", "toy_constant"], 1, "its target is the same for every document ('0')"),
    "recipe": (["--recipe", "best"], 2, "'--recipe'"),
    "output": (["--output", "a.pt"], 2, "'--output': a.pt: the file name must end in .safetensors"),
    "output folder": (["--output", "nowhere/a.safetensors"], 2, "nowhere is not a writable folder"),
    "curves": (
        ["--curves", "nowhere/a.png"],
        2,
        "'--curves': nowhere/a.png: nowhere is not a writable folder",
    ),
    "model": (["--model", "nowhere/at-all"], 1, "nowhere/at-all"),
    "include path": (["--include-path", "nowhere"], 1, "nowhere: no such task folder"),
    "model argument": (["--model-args", "max_length"], 2, "'--model-args': 'max_length': expected key=value"),
    "start": (["--start", "nowhere.safetensors"], 1, "nowhere.safetensors: no such booster"),
    "strength of the start": (["--start", "a.safetensors:x"], 2, "strength 'x' is not a number"),
    "start of automatic layers": (
        ["--start", "a.safetensors", "--layer", "auto"],
        1,
        "layers auto and a booster to start from cannot be used together",
    ),
    "objective": (["--tasks", "toy_text", "--objective", "choice"], 1, "no choices in toy_text; use answer"),
}


@pytest.mark.parametrize("name", BAD_TRAINING)
def test_bad_input_is_one_line_without_a_traceback(name: str, model: str, in_tmp: Path) -> None:
    changed, exit_code, reason = BAD_TRAINING[name]
    options = {"--model": model, "--tasks": "toy_choice", "--output": "a.safetensors", "--limit": "4"}
    options.update(zip(changed[::2], changed[1::2], strict=True))
    result = aft("train", "--include-path", TOYS, *(word for pair in options.items() for word in pair))
    assert_refused(result, exit_code, reason)
    assert os.listdir(in_tmp) == []


def test_ctrl_c_leaves_nothing_behind(model: str, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aft_harness.training import train as training

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "run_epoch", interrupted)
    result = train(model, "--limit", "4")
    assert result.exit_code == 130 and result.stderr.endswith("Interrupted: nothing was written.\n")
    assert os.listdir(in_tmp) == []


def test_a_dry_run_says_what_training_will_take_and_writes_nothing(model: str, in_tmp: Path) -> None:
    result = train(model, "--limit", "8", "--dry-run", "--batch_size", "4")
    assert result.exit_code == 0, result.stderr
    memory, duration = result.stdout.splitlines()
    assert memory.startswith("memory  about ") and "weights 0.00" in memory and "passes" in memory
    assert duration.startswith("time    about ") and "training" in duration
    assert os.listdir(in_tmp) == []
    assert_refused(train(model, "--dry-run", "--objective", "reward", tasks="toy_text"), 1, "cannot be estimated")


@pytest.mark.parametrize("options", [["--layer", "1"], ["--layer", "auto", "--dev-docs", "4"]])
def test_the_same_command_resumes(
    options: list[str], model: str, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aft_harness.training import train as training
    from aft_harness.training.loop import run_epoch

    asked = [*options, "--limit", "6", "--epochs", "3"]
    assert train(model, *asked, output="whole.safetensors").exit_code == 0

    def interrupted(*args: Any, **kwargs: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        run_epoch(*args, **kwargs)

    monkeypatch.setattr(training, "run_epoch", interrupted)
    left = iter(range(2))
    result = train(model, *asked)
    assert result.exit_code == 130
    kept = "Interrupted: finished work is kept in a.safetensors.resume; rerun the same command to resume.\n"
    assert result.stderr.endswith(kept)
    assert not Path("a.safetensors").exists() and list(in_tmp.glob("a.safetensors.resume*"))
    left = iter(range(100))
    assert train(model, *asked).exit_code == 0
    assert sorted(os.listdir(in_tmp)) == ["a.safetensors", "whole.safetensors"]
    assert Booster.load("a.safetensors").sha256 == Booster.load("whole.safetensors").sha256
    if "auto" not in options:  # the first call did two epochs of three
        assert next(left) == 1


@pytest.mark.parametrize("options", [["--layer", "1"], ["--layer", "auto", "--dev-docs", "4"]])
def test_what_could_not_be_saved_is_not_trained_again(
    options: list[str], model: str, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aft_harness.training import train as training

    asked = [*options, "--limit", "6", "--epochs", "2", "--curves", "c.png"]
    with monkeypatch.context() as patch:

        def full(booster: Booster, path: Path) -> None:
            raise FileError(f"{path}: cannot be written (No space left on device)")

        patch.setattr(Booster, "save", full)
        result = train(model, *asked)
    assert result.exit_code == 1 and "a.safetensors: cannot be written (No space left on device)" in result.stderr
    assert {"c.csv", "c.png"} < set(os.listdir(in_tmp)) and not Path("a.safetensors").exists()
    monkeypatch.setattr(training, "run_epoch", None)  # is not called
    assert train(model, *asked).exit_code == 0
    assert sorted(os.listdir(in_tmp)) == ["a.safetensors", "c.csv", "c.png"]
    refused = train(model, *asked, output="b.safetensors")  # another training's curves are not replaced
    assert refused.exit_code == 2 and "'--curves': c.png: file exists; use --overwrite" in refused.stderr


def test_a_contextual_booster_is_trained_shown_and_evaluated(model: str, in_tmp: Path) -> None:
    options = ["--limit", "6", "--epochs", "2", "--lr", "0.05", "--kind", "contextual", "--rank", "3", "--layer", "1"]
    assert train(model, *options, "--rate-unit", "absolute", "--schedule", "constant").exit_code == 0
    booster = Booster.load("a.safetensors")
    assert booster.injections[1].spec["kind"] == "contextual" and not booster.is_zero
    assert booster.provenance.epoch_losses[1] < booster.provenance.epoch_losses[0]
    assert "contextual, rank 3, gelu, input norm rms" in aft("show", "a.safetensors").stdout
    common = ["--model", model, "--tasks", "toy_choice", "--include-path", TOYS, "--device", "cpu"]
    result = aft("evaluate", *common, "--vector", "a.safetensors:0.5", "--docs", "2:8", "--csv", "a.csv")
    assert result.exit_code == 0, result.stderr
    table = pd.read_csv("a.csv")
    assert table["n"].tolist() == [6] and table["booster"].tolist() == ["a.safetensors:0.5"]
    assert str(in_tmp) not in Path("a.csv").read_text()


def test_real_arc_easy_trains_and_lowers_the_loss(real_data: Path, smollm2: Path, in_tmp: Path) -> None:
    options = ["--recipe", "original", "--batch-size", "8", "--layer", "15"]
    options += ["--tasks", "arc_easy", "--limit", "16", "--epochs", "2", "--lr", "2e-2", "--objective", "both"]
    result = aft("train", "--model", str(smollm2), *options, "--output", "arc.safetensors")
    assert result.exit_code == 0, result.stderr
    provenance = Booster.load("arc.safetensors").provenance
    assert provenance.before is not None and provenance.after is not None and provenance.base_model is not None
    assert provenance.after.loss < provenance.before.loss
    assert provenance.base_model.name == "SmolLM2-135M-Instruct (Q4_1, dequantised)"


def test_real_gsm8k_trains_on_target_texts_and_changes_what_is_generated(
    real_data: Path, smollm2: Path, in_tmp: Path
) -> None:
    options = ["--tasks", "gsm8k", "--num-fewshot", "0", "--limit", "8", "--epochs", "3", "--lr", "5e-2"]
    result = aft("train", "--model", str(smollm2), *options, "--objective", "answer", "--output", "gsm.safetensors")
    assert result.exit_code == 0, result.stderr
    provenance = Booster.load("gsm.safetensors").provenance
    assert provenance.before is not None and provenance.after is not None
    assert provenance.after.loss < provenance.before.loss and provenance.objective == "answer"


def test_train_on_own_texts(model: str, in_tmp: Path) -> None:
    (in_tmp / "my_rewards.py").write_text("def long(document, text): return float(len(text) > 12)\n")
    judged = ("--tasks", "toy_text", "--limit", "6", "--epochs", "1", "--keep", "0", "--samples", "4")
    result = train(model, *judged, "--objective", "reward", "--reward", "my_rewards:long")
    assert result.exit_code == 0, result.stderr
    assert "texts are judged by my_rewards:long" in result.stderr
    assert "negative reward" in result.stdout
    assert sorted(path for path in os.listdir(in_tmp) if "rewards" not in path and "__" not in path) == [
        "a.safetensors"
    ]
    shown = aft("show", "a.safetensors")
    assert "objective reward" in shown.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tasks", "toy_choice", "--objective", "reward"), "only generation tasks"),
        (("--tasks", "toy_text", "--objective", "reward", "--reward", "no_module:f"), "cannot be imported"),
        (("--tasks", "toy_text", "--objective", "rejection", "--reward", "bleu"), "no metric 'bleu'"),
        (("--tasks", "toy_text", "--reward", "exact_match"), "needs objective rejection or reward"),
        (("--tasks", "toy_text", "--objective", "reward", "--layers", "auto", "--dev_docs", "2"), "layers auto"),
    ],
)
def test_own_texts_refuse_what_cannot_be_judged(model: str, in_tmp: Path, options: tuple[str, ...], words: str) -> None:
    assert_refused(train(model, *options), 1, words)
    assert not list(in_tmp.glob("a.*"))
