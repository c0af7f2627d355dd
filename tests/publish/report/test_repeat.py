from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from report_cases import BASE, HOSTILE, booster, row, sweep_row

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.model_identity import EMBEDDED
from aft_harness.cli import main
from aft_harness.publish.report.repeat import evaluation_commands, training_command

TOYS = str(Path(__file__).parents[2] / "toy_tasks")


def words(command: str | None) -> list[str]:
    assert command
    return shlex.split(command.replace("\\\n", " "), comments=True)


def test_the_command_of_a_training_says_what_differs_from_the_default() -> None:
    made = booster(
        hyperparameters={"layers": [1], "kind": "static", "epochs": 5, "lr": 0.05, "batch_size": 4, "rank": 8}
    )
    assert words(training_command("mine", made)) == [
        *(
            "MODEL=FOLDER",
            "aft-train",
            "--model",
            "$MODEL",
            "--dtype",
            "float32",
            "--tasks",
            "arc_easy",
            "--limit",
            "60",
        ),
        *("--dev-docs", "20", "--train-docs", "train[0:90]", "--layers", "1", "--epochs", "5", "--batch-size", "4"),
        *("--output", "mine.safetensors"),
    ]


def test_the_line_of_the_model_is_a_hub_id_or_a_folder_that_only_its_owner_knows() -> None:
    hub = {**BASE, "name": "org/model", "revision": "0" * 40}
    assert words(training_command("m", booster(base_model=hub)))[:5] == [
        *("MODEL=org/model", "aft-train", "--model", "$MODEL", "--revision"),
    ]
    embedded = training_command("m", booster(base_model={**BASE, "name": EMBEDDED}))
    assert embedded and embedded.startswith("MODEL=$(aft demo-model)\n")
    local = training_command("m", booster())
    assert local and local.startswith(f"MODEL=FOLDER   # of toy, fingerprint {'f' * 12}\n")


def test_the_command_makes_the_very_same_booster(tiny_checkpoint: object, tmp_path: Path, monkeypatch: object) -> None:
    checkpoint = tiny_checkpoint("llama")  # type: ignore[operator]
    monkeypatch.chdir(tmp_path)  # type: ignore[attr-defined]
    asked = ["train", "--model", str(checkpoint), "--tasks", "toy_choice", "--include-path", TOYS, "--dtype", "float32"]
    asked += ["--limit", "6", "--dev-docs", "3", "--layers", "1,2", "--lr", "0.2", "--epochs", "2", "--seed", "3"]
    asked += ["--batch-size", "2", "--objective", "choice", "--rate-unit", "absolute", "--output", "first.safetensors"]
    assert CliRunner().invoke(main, asked).exit_code == 0
    first = Booster.load("first.safetensors")
    _, command, *again = words(training_command("again", first))
    again = [str(checkpoint) if word == "$MODEL" else word for word in again]
    done = CliRunner().invoke(main, ["train", *again, "--include-path", TOYS])
    assert command == "aft-train" and done.exit_code == 0, done.output
    second = Booster.load("again.safetensors")
    assert second.sha256 == first.sha256
    assert second.provenance.training_sha256 == first.provenance.training_sha256


@pytest.mark.parametrize(
    ("provenance", "expected"),
    [
        ({"method": "mean-difference"}, "aft extract mean-difference --model $MODEL"),
        ({"method": "function-vector", "tasks": [], "questions": ["a", "b"]}, "--questions QUESTIONS.txt"),
        (
            {"method": "mix", "parts": [{"booster_sha256": "ab" * 32, "strength": 0.5}, {"booster_sha256": "cd" * 32}]},
            "aft mix PART-1.safetensors:0.5 PART-2.safetensors:1 -o mine.safetensors",
        ),
        ({"start": {"booster_sha256": "ab" * 32, "provenance": {"tasks": []}}}, "--start START.safetensors"),
        ({"method": "imported", "tasks": []}, None),
        ({"tasks": []}, None),
    ],
)
def test_other_methods_have_their_commands(provenance: dict[str, object], expected: str | None) -> None:
    command = training_command("mine", booster(**provenance))
    if expected is None:
        assert command is None
    else:
        assert expected in " ".join(words(command))


def test_what_a_file_says_of_itself_stays_one_word_of_the_command() -> None:
    task = {"task": f"a; rm -rf / {HOSTILE}", "n_train": 1, "split": "train[0:2]\nrm -rf /"}
    command = training_command(HOSTILE, booster(tasks=[task], base_model={**BASE, "name": "x\nrm -rf /"}))
    found = words(command)
    assert found[found.index("--tasks") + 1] == task["task"]
    assert found[found.index("--train-docs") + 1] == task["split"]
    assert found[-1] == f"{HOSTILE}.safetensors" and "rm" not in found


def test_evaluations_are_named_by_model_with_the_files_that_are_known() -> None:
    rows = [row(), row(task="gsm8k_easy", strength=0.5), row(booster="b.safetensors:0.5", booster_sha256="cd" * 32)]
    (command,) = evaluation_commands(rows, {"ab" * 32: "mine"})
    assert words(command) == [
        *("MODEL=FOLDER", "aft", "evaluate", "--model", "$MODEL", "--dtype", "float32", "--tasks", "a,gsm8k_easy"),
        *("--include-path", "$(aft tasks)", "--vector", "mine.safetensors", "--vector", "mine.safetensors:0.5"),
        *("--vector", "b.safetensors:0.5", "--output", "out"),
    ]
    hub = evaluation_commands([row(model="org/m", revision="0" * 40, num_fewshot=5)], {})[0]
    assert words(hub)[0] == "MODEL=org/m" and "BOOSTER.safetensors" in words(hub)
    assert words(hub)[words(hub).index("--num-fewshot") + 1] == "5"
    assert len(evaluation_commands([row(), row(dtype="bfloat16"), row(num_fewshot=3)], {})) == 3


def test_sweeps_have_commands_of_their_own() -> None:
    layers = [sweep_row(0, sweep="mine", layers=layer, trained_on="arc_easy") for layer in ("10", "2")]
    strengths = [sweep_row(0, sweep="s", strength=value) for value in (1.0, 0.5)]
    first, second = evaluation_commands([*layers, *strengths], {"ab" * 32: "v"})
    assert words(first)[1:] == [
        *(
            "aft",
            "sweep",
            "layers",
            "--model",
            "$MODEL",
            "--dtype",
            "float32",
            "--tasks",
            "arc_easy",
            "--layers",
            "2,10",
        ),
        *("--limit", "50", "--dev-docs", "30", "--test-tasks", "a", "--output", "mine"),
    ]
    assert "--vector v.safetensors --strengths 0.5,1" in " ".join(words(second))
