"""Which documents and pairs commands learn from: from options to a trained booster and its held-out result."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cli_cases import TOYS, aft, assert_refused
from transformers import AutoTokenizer

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.documents import text_hash
from aft_harness.cli.drawing import mixture
from aft_harness.harness.selection import PairSelection

TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


@pytest.fixture(scope="module")
def chat_model(tiny_checkpoint: Any) -> str:
    folder = str(tiny_checkpoint("llama"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, rows: list[Any]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows(count: int = 20, start: int = 0) -> list[dict[str, str]]:
    return [
        {"prompt": f"The child has {number} apples", "chosen": " in boxes.", "rejected": " and walks."}
        for number in range(start, start + count)
    ]


def train(model: str, *options: object) -> Any:
    return aft("train", "--model", model, "--epochs", 1, "--layer", 1, "--output", "a.safetensors", *options)


def test_pairs_are_trained_on_held_out_and_reported(model: str, in_tmp: Path) -> None:
    write("my.jsonl", rows())
    result = train(model, "--pairs", "my.jsonl", "--dev-docs", 3, "--objective", "preference")
    assert result.exit_code == 0, result.stderr
    said = "my: 13 training documents, 3 development documents and 4 held-out documents from pairs[0:20]"
    assert said in result.stderr
    learned = [line for line in result.stderr.splitlines() if line.startswith("|")]
    assert learned[0].startswith("| The child has") and learned[1:] == ["| * in boxes.", "| - and walks."]
    report = result.stdout.partition("On held-out pairs:\n")[2].splitlines()
    assert [line.split()[1:4] for line in report[1:]] == [
        ["my", metric, "4"] for metric in ("acc", "acc_norm", "margin")
    ]
    provenance = Booster.load("a.safetensors").provenance
    (record,) = provenance.tasks
    assert (record.task, record.split, record.n_train, record.n_held_out) == ("my", "pairs[0:20]", 13, 4)
    assert provenance.objective == "preference" and provenance.before is not None
    assert provenance.before.accuracy is not None and len(provenance.hashes) == 13
    assert provenance.hashes < {text_hash(row["prompt"]) for row in rows()}
    assert str(in_tmp) not in json.dumps(provenance.to_json())
    shown = aft("show", "a.safetensors")
    assert "my pairs[0:20]: 13 documents" in shown.stdout


def test_chat_goes_through_the_template_and_evaluation_knows_it(
    chat_model: str, in_tmp: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chat = [
        {"chosen": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["chosen"]}]}
        | {"rejected": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["rejected"]}]}
        for row in rows(30)
    ]
    write("chat.jsonl", chat[:20])
    write("others.jsonl", chat[20:])
    result = train(chat_model, "--pairs", "chat.jsonl")
    assert result.exit_code == 0, result.stderr
    assert "| [user] The child has" in result.stderr
    prompting = Booster.load("a.safetensors").provenance.prompting
    assert prompting is not None and prompting["apply_chat_template"] is True
    asked = ["--model", chat_model, "--vector", "a.safetensors", "--csv", "a.csv"]
    found = aft("evaluate", *asked, "--pairs", "others.jsonl", "--tasks", "toy_choice", "--include-path", TOYS)
    assert found.exit_code == 0, found.stderr
    table = pd.read_csv("a.csv")
    assert table[table["task"] == "others"]["metric"].tolist() == ["acc", "acc_norm", "margin"]
    assert set(table["task"]) == {"others", "toy_choice"} and table["n"].tolist()[-1] in (10, 12)
    assert "training documents" not in caplog.text
    again = aft("evaluate", *asked, "--pairs", "chat.jsonl", "--overwrite")
    assert again.exit_code == 0 and "16 of 20 documents of chat are among the booster's training" in caplog.text
    # The same as text, which goes through the template where it is asked for.
    write("text.jsonl", rows()[:20])
    as_text = train(chat_model, "--pairs", "text.jsonl", "--apply-chat-template", "--overwrite")
    assert as_text.exit_code == 0 and "| [user] The child has" in as_text.stderr


def test_tasks_and_pairs_are_mixed_with_their_own_numbers(model: str, in_tmp: Path) -> None:
    write("my.jsonl", rows())
    options = ["--tasks", "toy_choice", "--include-path", TOYS, "--limit", "5", "--limit", "my=4", "--weight", "my=0.5"]
    result = train(model, "--pairs", "my.jsonl", "--held-out", "my=3", *options)
    assert result.exit_code == 0, result.stderr
    records = Booster.load("a.safetensors").provenance.tasks
    assert [(record.task, record.n_train, record.weight, record.n_held_out) for record in records] == [
        ("toy_choice", 5, 1.0, None),
        ("my", 4, 0.5, 3),
    ]


def test_options_select_pairs_by_name() -> None:
    tasks, pairs = mixture(
        tasks="a,b", pairs=("x/my.jsonl", "owner/set:test"), limit=("set=7", "a=all"), held_out=("9",)
    )
    assert [(each.name, each.limit) for each in tasks] == [("a", None), ("b", 600)]
    assert pairs == [PairSelection("x/my.jsonl", held_out=9), PairSelection("owner/set:test", limit=7, held_out=9)]


def test_layers_are_chosen_on_development_pairs(model: str, in_tmp: Path) -> None:
    write("my.jsonl", rows())
    options = ["--epochs", 1, "--layer", "auto", "--dev-docs", 4, "--output", "b.safetensors"]
    result = aft("train", "--model", model, "--pairs", "my.jsonl", *options)
    assert result.exit_code == 0, result.stderr
    assert "On held-out pairs:" in result.stdout and "on 4 development documents" in result.stdout


def test_chosen_texts_alone_report_bits_per_byte(model: str, in_tmp: Path) -> None:
    pd.DataFrame(rows()).drop(columns="rejected").to_csv("my.csv", index=False)
    result = train(model, "--pairs", "my.csv")
    assert result.exit_code == 0, result.stderr
    assert Booster.load("a.safetensors").provenance.objective == "answer"
    assert "bits_per_byte" in result.stdout and "acc" not in result.stdout.partition("On held-out pairs:")[2]


BAD: dict[str, tuple[list[str], int, str]] = {
    "neither": ([], 2, "Missing option '--tasks' or '--pairs'"),
    "no file": (["--pairs", "nowhere.jsonl"], 1, "nowhere.jsonl: no such file"),
    "kind of file": (["--pairs", "a.txt"], 2, "a.txt: unknown kind of file; expected .jsonl, .csv or .parquet"),
    "not JSON": (["--pairs", "broken.jsonl"], 1, "broken.jsonl: line 2: not JSON"),
    "field": (["--pairs", "field.jsonl"], 1, "field.jsonl: line 1: has neither chosen nor completion"),
    "the same": (["--pairs", "same.jsonl"], 1, "same.jsonl: line 1: chosen and rejected are the same text"),
    "long": (["--pairs", "long.jsonl"], 1, "long.jsonl: line 1: prompt and chosen text have"),
    "no template": (["--pairs", "chat.jsonl"], 1, "chat.jsonl: line 1: the tokenizer of"),
    "template for text": (["--pairs", "my.jsonl", "--apply-chat-template"], 1, "has no chat template"),
    "too few": (["--pairs", "my.jsonl", "--held-out", "5", "--dev-docs", "1"], 1, "leave none of 6 for training"),
    "held out of tasks": (["--tasks", "toy_choice", "--held-out", "5"], 2, "--held-out needs --pairs"),
    "held out of others": (["--pairs", "my.jsonl", "--held-out", "b=5"], 2, "b=5: 'b' is not among --pairs"),
    "rows of pairs": (["--pairs", "my.jsonl", "--train-docs", "train[:5]"], 2, "--train-docs needs --tasks"),
    "field of pairs": (["--pairs", "my.jsonl", "--target-field", "x"], 2, "--target-field needs --tasks"),
    "shots of pairs": (["--pairs", "my.jsonl", "--num-fewshot", "2"], 2, "--num-fewshot needs --tasks"),
    "limit": (["--pairs", "my.jsonl", "--limit", "b=5"], 2, "'b' is not among --pairs"),
    "twice": (["--pairs", "my.jsonl", "--pairs", "sub/my.jsonl"], 2, "two sources of pairs have the same name"),
    "name of a task": (["--pairs", "toy_choice.jsonl", "--tasks", "toy_choice"], 1, "the name of a task or of other"),
    "no rejected": (
        ["--pairs", "alone.jsonl", "--objective", "preference"],
        1,
        "no pairs with a rejected text in alone",
    ),
    "preference of tasks": (
        ["--tasks", "toy_choice", "--objective", "preference"],
        1,
        "with a rejected text in toy_choice",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pairs_are_one_line_and_nothing_is_written(name: str, model: str, in_tmp: Path) -> None:
    write("my.jsonl", rows(6))
    write("toy_choice.jsonl", rows(6))
    write("alone.jsonl", [{"prompt": "a", "completion": " b"}, {"prompt": "c", "completion": " d"}])
    write("field.jsonl", [{"text": "a"}])
    write("same.jsonl", [{**rows(1)[0], "rejected": " in boxes. "}])
    write("long.jsonl", [{**rows(1)[0], "chosen": " a" * 500}])
    write(
        "chat.jsonl",
        [{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}],
    )
    Path("broken.jsonl").write_text(json.dumps(rows(1)[0]) + "\nprompt: a\n")
    Path("a.txt").touch()
    options, exit_code, reason = BAD[name]
    before = set(os.listdir(in_tmp))
    result = train(model, "--include-path", TOYS, *options)
    assert_refused(result, exit_code, reason)
    assert set(os.listdir(in_tmp)) == before


def test_evaluation_needs_tasks_or_pairs(model: str, in_tmp: Path) -> None:
    assert_refused(aft("evaluate", "--model", model, "--vector", "a"), 2, "Missing option '--tasks' or '--pairs'")
