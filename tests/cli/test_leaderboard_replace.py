"""`aft leaderboard add`: what it says of rows that it keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from aft_harness.cli import main

BASE = {"name": "toy", "fingerprint": "f" * 64, "architecture": "ToyForCausalLM"}


def write(folder: Path, outcomes: list[int], steered: bool, prompt: str = "p") -> None:
    """A run of lm-eval, as it writes it."""
    aft: dict[str, Any] = {"version": "1", "base_model": BASE, "device": "cpu"}
    if steered:
        aft |= {"booster_sha256": "s", "layers": [1], "method": "aft", "trained_on": ["a"], "seed": 0}
    results = {
        **{"config": {"aft": aft, "model_dtype": "torch.float32"}, "configs": {"b": {}}, "versions": {"b": 1}},
        **{"n-shot": {"b": 0}, "date": 1.7e9},
    }
    folder.mkdir(parents=True, exist_ok=True)
    stamp = f"2026-01-0{1 + steered}"
    (folder / f"results_{stamp}.json").write_text(json.dumps(results))
    samples = [
        {
            **{"doc_id": place, "doc_hash": f"d{place}", "prompt_hash": f"{prompt}{place}", "target_hash": "t"},
            **{"filter": "none", "metrics": ["acc"], "acc": outcome},
        }
        for place, outcome in enumerate(outcomes)
    ]
    (folder / f"samples_b_{stamp}.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))


def test_a_first_look_takes_no_row_away_unless_it_is_asked_to(tmp_path: Path) -> None:
    table = tmp_path / "l.csv"
    for name, outcomes in (("whole", [1] * 12), ("glance", [1])):
        write(tmp_path / name, [0] * len(outcomes), False)
        write(tmp_path / name, outcomes, True)

    def add(name: str, *options: str) -> tuple[str, str]:
        done = CliRunner().invoke(main, ["leaderboard", "add", str(tmp_path / name), "--to", str(table), *options])
        assert done.exit_code == 0, done.stderr
        return done.stdout, done.stderr

    assert add("whole") == (f"{table}: 1 rows added, 0 replaced, 0 already present\n", "")
    stdout, stderr = add("glance")
    assert stdout == f"{table}: 1 rows added, 0 replaced, 0 already present\n"
    what = "matching rows on other documents or with more pooled seeds"
    assert stderr == f"{table}: 1 {what} were kept; use --replace to replace them\n"
    assert len(table.read_text().splitlines()) == 3
    table.unlink()
    add("whole")
    assert add("glance", "--replace") == (f"{table}: 0 rows added, 1 replaced, 0 already present\n", "")
    assert len(table.read_text().splitlines()) == 2


def test_plain_and_chat_runs_of_one_folder_are_two_rows(tmp_path: Path) -> None:
    for prompt in ("plain", "chat"):
        write(tmp_path / "runs" / prompt, [0, 1], False, prompt)
        write(tmp_path / "runs" / prompt, [1, 1], True, prompt)
    arguments = ["leaderboard", "add", str(tmp_path / "runs"), "--to", str(tmp_path / "l.csv")]
    assert "2 rows added" in CliRunner().invoke(main, arguments).stdout
