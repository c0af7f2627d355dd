from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from aft_harness.boosters.booster import Booster
from aft_harness.cli import main
from aft_harness.cli.options import selections
from aft_harness.results.pairing import compare_samples, read_samples
from aft_harness.training.recipe import TRAINING_DOCUMENTS

TOYS = str(Path(__file__).parents[1] / "toy_tasks")


def aft(*arguments: str) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


@pytest.fixture
def in_tmp(tmp_path: Path) -> Iterator[Path]:
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


def train(model: str, *arguments: str, tasks: str = "toy_choice", output: str = "a.safetensors") -> Result:
    return aft("train", "--model", model, "--tasks", tasks, "--include-path", TOYS, "--output", output, *arguments)


def test_train_writes_a_booster_and_says_what_it_did(model: str, in_tmp: Path) -> None:
    result = train(model, "--limit", "8", "--dev_docs", "4", "--epochs", "2", "--layers", "1,2", "--num_fewshot", "1")
    assert result.exit_code == 0, result.stderr
    assert "8 training documents and 4 development documents of train[0:24], 1 dropped" in result.stderr
    for word in ("before", "after", "development documents", "norm of the delta", "cost", "layer 1", "layer 2"):
        assert word in result.stdout
    booster = Booster.load("a.safetensors")
    assert booster.layers == (1, 2) and booster.provenance["tasks"][0]["num_fewshot"] == 1
    assert os.listdir(in_tmp) == ["a.safetensors"]
    assert str(Path(model).parent) not in json.dumps(booster.provenance)
    shown = aft("show", "a.safetensors")
    assert shown.exit_code == 0
    for word in (booster.sha256, "aft, objective both", "toy_choice train[0:24]: 8 documents", "parameters  64"):
        assert word in shown.stdout


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
    told = Booster.load("a.safetensors").provenance["tasks"]
    assert [(task["task"], task["n_train"], task["weight"]) for task in told] == [
        ("toy_choice", 6, 1.0),
        ("toy_text", 3, 0.5),
    ]


def test_the_number_of_training_documents_has_a_default_and_a_way_to_all() -> None:
    limits = [one.limit for one in selections(tasks="a,b,c", limit=["b=all", "c=7"])]
    assert limits == [TRAINING_DOCUMENTS, None, 7]
    assert [one.limit for one in selections(tasks="a,b", limit=["all"])] == [None, None]


BAD_TRAINING = {
    "unknown task": (["--tasks", "toy_choise"], "toy_choise"),
    "no training split": (["--tasks", "toy_no_train"], "toy_no_train has no training split"),
    "no tasks": (["--tasks", ","], "--tasks is empty"),
    "negative layer": (["--layer", "-1"], "layer -1 is out of range: the model has layers 0 to 3"),
    "layer too large": (["--layer", "4"], "layer 4 is out of range: the model has layers 0 to 3"),
    "layer in words": (["--layer", "middle"], "--layer middle"),
    "limit of another task": (["--limit", "arc_easy=3"], "--limit arc_easy=3"),
    "limit in words": (["--limit", "many"], "--limit many"),
    "weight": (["--weight", "toy_choice=-1"], "--weight toy_choice=-1"),
    "output": (["--output", "a.pt"], "--output a.pt"),
    "output folder": (["--output", "nowhere/a.safetensors"], "--output nowhere/a.safetensors"),
    "model": (["--model", "nowhere/at-all"], "nowhere/at-all"),
    "include path": (["--include-path", "nowhere"], "--include-path nowhere"),
    "model argument": (["--model-args", "max_length"], "--model-args max_length"),
    "start": (["--start", "nowhere.safetensors"], "nowhere.safetensors: no such booster"),
    "start of automatic layers": (["--start", "a.safetensors", "--layer", "auto"], "--start"),
    "objective": (["--tasks", "toy_text", "--objective", "choice"], "no choices in toy_text"),
}


@pytest.mark.parametrize("name", BAD_TRAINING)
def test_bad_input_is_one_line_without_a_traceback(name: str, model: str, in_tmp: Path) -> None:
    changed, reason = BAD_TRAINING[name]
    options = {"--model": model, "--tasks": "toy_choice", "--output": "a.safetensors", "--limit": "4"}
    options.update(zip(changed[::2], changed[1::2], strict=True))
    result = aft("train", "--include-path", TOYS, *(word for pair in options.items() for word in pair))
    assert result.exit_code not in (0, None)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("Error:") and reason in last
    assert "Traceback" not in result.output
    assert os.listdir(in_tmp) == []


def test_ctrl_c_leaves_nothing_behind(model: str, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aft_harness.training import train as training

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "run_epoch", interrupted)
    result = train(model, "--limit", "4")
    assert result.exit_code == 130 and result.stderr.endswith("Interrupted: nothing was written.\n")
    assert os.listdir(in_tmp) == []


def test_compare_pairs_two_folders(in_tmp: Path) -> None:
    for name, outcomes in (("a", [0, 0, 0, 0, 0, 0, 1]), ("b", [1, 1, 1, 1, 1, 1, 0])):
        (in_tmp / name).mkdir()
        same = {"prompt_hash": "p", "target_hash": "t", "filter": "none", "metrics": ["acc"]}
        lines = [{**same, "doc_id": i, "doc_hash": f"{i}", "acc": outcome} for i, outcome in enumerate(outcomes)]
        (in_tmp / name / "samples_x_2026-01-01.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = aft("compare", "a", "b", "--task", "x", "--docs", "0:6")
    # Six gained and none lost: 2 / 2**6 by the definition of the exact test.
    assert "x acc, documents 0:6: n = 6, 0.0% -> 100.0%, +100.0 points" in result.stdout
    assert "gained 6, lost 0, exact McNemar p = 0.031" in result.stdout
    for arguments in (["a", "nowhere"], ["a", "b", "--metric", "f1"], ["a", "b", "--docs", "x"]):
        failed = aft("compare", *arguments, "--task", "x")
        assert failed.exit_code == 1 and failed.stderr.startswith("Error:") and failed.stderr.count("\n") == 1


def bad_boosters(folder: Path) -> dict[str, str]:
    good = Booster.static({1: torch.ones(32)})
    good.save(folder / "good.safetensors")
    (folder / "pickle.safetensors").write_bytes(pickle.dumps({"a": 1}))
    (folder / "empty.safetensors").touch()
    Booster.static({1: torch.ones(8)}).save(folder / "narrow.safetensors")
    Booster.static({7: torch.ones(32)}).save(folder / "deep.safetensors")
    nan = (folder / "good.safetensors").read_bytes()
    (folder / "nan.safetensors").write_bytes(nan[:-4] + b"\x00\x00\xc0\x7f")
    (folder / "negative.safetensors").write_bytes(nan.replace(b'\\"1\\":', b'\\"-\\":'))
    return {
        "nowhere.safetensors": "nowhere.safetensors: no such booster file",
        "pickle.safetensors": "pickle.safetensors: is not a safetensors file",
        "empty.safetensors": "empty.safetensors: is not a safetensors file",
        "narrow.safetensors": "hidden size of 8",
        "deep.safetensors": "layer 7 is out of range",
        "nan.safetensors": "nan.safetensors: layers.1.vector holds NaN",
        "negative.safetensors": "negative.safetensors: layer '-' is out of range",
        "good.safetensors:x": "strength 'x' is not a number",
    }


def test_show_refuses_bad_boosters_in_one_line(in_tmp: Path) -> None:
    for vector, reason in bad_boosters(in_tmp).items():
        if vector.startswith(("narrow", "deep")):  # fine in themselves
            assert aft("show", vector).exit_code == 0
            continue
        result = aft("show", vector)
        assert result.exit_code == 1 and reason in result.stderr and result.stderr.count("\n") == 1


def stock_lm_eval(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # The stock CLI in a process of its own: only the installed bridge can tell it of steered-hf.
    command = [sys.executable, "-m", "lm_eval", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=200)


def test_the_stock_cli_evaluates_a_booster(model: str, in_tmp: Path) -> None:
    assert train(model, "--limit", "12", "--epochs", "3", "--lr", "0.5").exit_code == 0
    common = ["--model", "steered-hf", "--tasks", "toy_choice", "--include_path", TOYS, "--batch_size", "4"]
    common += ["--device", "cpu", "--log_samples"]
    arguments = {"base": f"pretrained={model}", "steered": f"pretrained={model},vector=a.safetensors:2,scale=0.5"}
    for (name, model_args), run in zip(arguments.items(), ([], ["run"]), strict=True):
        done = stock_lm_eval(*run, *common, "--model_args", model_args, "--output_path", name, cwd=in_tmp)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "toy_choice" in done.stdout
    written = next((in_tmp / "steered").rglob("results_*.json")).read_text()
    assert json.loads(written)["config"]["aft"]["booster_sha256"] == Booster.load("a.safetensors").sha256
    base, steered = (read_samples(in_tmp / name, "toy_choice") for name in ("base", "steered"))
    assert compare_samples(base, steered, "acc").n == 12
    assert any(base[key]["filtered_resps"] != steered[key]["filtered_resps"] for key in base)


def test_the_stock_cli_ends_with_the_reason(model: str, in_tmp: Path) -> None:
    # One process for all: the message is the exception's, and lm_eval's own CLI prints whatever exception is raised.
    cases = bad_boosters(in_tmp)
    code = (
        "import json, sys, traceback\n"
        "from lm_eval.api.registry import get_model\n"
        "for vector in json.loads(sys.argv[1]):\n"
        "    try:\n"
        f"        get_model('steered-hf').create_from_arg_obj({{'pretrained': {model!r}, 'vector': vector}}, {{}})\n"
        "    except Exception:\n"
        "        print(json.dumps(traceback.format_exc().strip().splitlines()[-1]))\n"
    )
    command = [sys.executable, "-c", code, json.dumps(list(cases))]
    done = subprocess.run(command, cwd=in_tmp, capture_output=True, text=True, check=False, timeout=200)
    last_lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(last_lines) == len(cases), done.stderr[-2000:]
    for reason, line in zip(cases.values(), last_lines, strict=True):
        assert reason in line and line.startswith("aft_harness.errors.")
    done = stock_lm_eval(
        *("--model", "steered-hf", "--model_args", f"pretrained={model},vector=nan.safetensors"),
        *("--tasks", "toy_choice", "--include_path", TOYS),
        cwd=in_tmp,
    )
    assert done.returncode != 0
    assert "nan.safetensors: layers.1.vector holds NaN" in done.stderr.strip().splitlines()[-1]


def test_help_needs_no_heavy_import() -> None:
    heavy = ("torch", "transformers", "lm_eval", "datasets", "pandas", "scipy", "numpy")
    for words in (["--help"], ["train", "--help"], ["show", "--help"]):
        code = (
            "import sys\n"
            "from aft_harness.cli import main\n"
            f"try: main({words!r})\n"
            f"except SystemExit: print([name for name in {heavy!r} if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip().endswith("[]") and "Usage" in done.stdout


def test_tasks_prints_a_folder_for_include_path() -> None:
    folder = Path(aft("tasks").stdout.strip())
    assert (folder / "gsm8k_easy" / "gsm8k_easy.yaml").is_file()


def test_real_arc_easy_trains_and_lowers_the_loss(real_data: Path, smollm2: Path, in_tmp: Path) -> None:
    options = ["--tasks", "arc_easy", "--limit", "16", "--epochs", "2", "--lr", "2e-2", "--layer", "15"]
    result = aft("train", "--model", str(smollm2), *options, "--output", "arc.safetensors")
    assert result.exit_code == 0, result.stderr
    told = Booster.load("arc.safetensors").provenance
    assert told["after"]["loss"] < told["before"]["loss"]
    assert told["base_model"]["name"] == "SmolLM2-135M-Instruct (Q4_1, dequantised)"


def test_real_gsm8k_trains_on_target_texts_and_changes_what_is_generated(
    real_data: Path, smollm2: Path, in_tmp: Path
) -> None:
    options = ["--tasks", "gsm8k", "--num-fewshot", "0", "--limit", "8", "--epochs", "3", "--lr", "5e-2"]
    result = aft("train", "--model", str(smollm2), *options, "--objective", "answer", "--output", "gsm.safetensors")
    assert result.exit_code == 0, result.stderr
    told = Booster.load("gsm.safetensors").provenance
    assert told["after"]["loss"] < told["before"]["loss"] and told["objective"] == "answer"


def test_mixing_makes_a_file_that_does_what_the_plus_grammar_does(in_tmp: Path) -> None:
    from aft_harness.boosters import references

    for name, seed in (("a", 0), ("b", 1)):
        generator = torch.Generator().manual_seed(seed)
        Booster.static({seed: torch.randn(32, generator=generator)}).save(f"{name}.safetensors")
    result = aft("mix", "a.safetensors:0.5", "b.safetensors:-2", "-o", "c.safetensors")
    assert result.exit_code == 0 and "2 boosters, layers 0, 1, 64 parameters" in result.stdout
    mixed, _ = references.load("a.safetensors:0.5+b.safetensors:-2")
    assert Booster.load("c.safetensors").sha256 == mixed.sha256
    Booster.static({0: torch.ones(32)}, {"base_model": {"name": "x", "fingerprint": "1"}}).save("x.safetensors")
    Booster.static({0: torch.ones(32)}, {"base_model": {"name": "y", "fingerprint": "2"}}).save("y.safetensors")
    for vectors, reason in (
        (["x.safetensors", "y.safetensors"], "boosters of different models cannot be mixed: x (1), y (2)"),
        (["a.safetensors:high"], "strength 'high' is not a number"),
        (["nowhere.safetensors"], "no such booster"),
    ):
        failed = aft("mix", *vectors, "-o", "d.safetensors")
        assert failed.exit_code == 1 and failed.stderr.startswith("Error:") and reason in failed.stderr
    assert not Path("d.safetensors").exists()


def test_a_contextual_booster_is_trained_shown_and_evaluated(model: str, in_tmp: Path) -> None:
    options = ["--limit", "6", "--epochs", "2", "--lr", "0.05", "--kind", "contextual", "--rank", "3", "--layer", "1"]
    assert train(model, *options).exit_code == 0
    booster = Booster.load("a.safetensors")
    assert booster.injections[1].spec["kind"] == "contextual" and not booster.is_zero
    assert booster.provenance["epoch_losses"][1] < booster.provenance["epoch_losses"][0]
    assert "contextual, rank 3, gelu, input norm rms" in aft("show", "a.safetensors").stdout
    common = ["--model", model, "--tasks", "toy_choice", "--include-path", TOYS, "--device", "cpu"]
    result = aft("evaluate", *common, "--vector", "a.safetensors:0.5", "--docs", "2:8", "--csv", "a.csv")
    assert result.exit_code == 0 and "n = 6" in result.stdout
    assert "a.safetensors" in Path("a.csv").read_text() and str(in_tmp) not in Path("a.csv").read_text()


def test_extraction_writes_boosters_and_refuses_bad_input(model: str, in_tmp: Path) -> None:
    common = ["--model", model, "--device", "cpu", "--output", "a.safetensors"]
    tasks = ["--tasks", "toy_choice", "--include-path", TOYS]
    result = aft("extract", "mean-difference", *common, *tasks, "--limit", "12")
    assert result.exit_code == 0, result.stderr
    assert "layer 2, " in result.stdout and "documents answered correctly" in result.stdout
    assert Booster.load("a.safetensors").provenance["method"] == "mean-difference"
    Path("asked.txt").write_text("What is light?\n\nWho are you?\n")
    result = aft("extract", "function-vector", *common, "--questions", "asked.txt", "--layer", "1")
    assert result.exit_code == 0 and "layer 1, 2 questions" in result.stdout
    shown = aft("show", "a.safetensors").stdout
    assert "function-vector" in shown and "norm 1.0000" in shown and "objective" not in shown
    Path("empty.txt").write_text("\n")
    for arguments, reason in (
        (["function-vector", *common, "--questions", "empty.txt"], "--questions empty.txt: holds no question"),
        (["function-vector", *common, "--layer", "9"], "layer 9 is out of range"),
        (["mean-difference", *common, *tasks, "--limit", "1"], "there is no difference to take"),
        (["mean-difference", *common, *tasks, "--tasks", "toy_text"], "toy_text has no choices"),
        (["mean-difference", *common, *tasks, "--tasks", "toy_choice,toy_text"], "takes one task, not 2"),
    ):
        failed = aft("extract", *arguments)
        assert failed.exit_code == 1 and failed.stderr.splitlines()[-1].startswith("Error:"), failed.output
        assert reason in failed.stderr
