"""Rows, runs and boosters that tests of reports share, and how a page is taken apart again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch

from aft_harness.boosters.booster import Booster
from aft_harness.results import table
from aft_harness.results.runs import Run

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`&amp;{{ 7*7 }}<!--\u2028\u202e"
"""What nobody should call a booster."""

BASE = {
    **{"name": "toy", "revision": None, "fingerprint": "f" * 64, "architecture": "ToyForCausalLM"},
    **{"layers": 4, "hidden_size": 8},
}


def row(**changes: Any) -> dict[str, Any]:
    """A row of a leaderboard: a gain of ten points on 100 documents, unless `changes` say otherwise."""
    made = {
        **{"model": "toy", "revision": "f" * 12, "architecture": "ToyForCausalLM", "parameters": 100},
        **{"booster": "aft a L1", "booster_sha256": "ab" * 32, "method": "aft", "objective": "both"},
        **{"trained_on": "a", "trained_n": 50, "layers": "1", "strength": 1.0, "booster_parameters": 8},
        **{"task": "a", "task_version": "1.0", "num_fewshot": 0, "metric": "acc", "filter": "none", "n": 100},
        **{"baseline": 0.4, "steered": 0.5, "delta": 0.1, "ci_low": 0.02, "ci_high": 0.18, "gained": 15, "lost": 5},
        **{"p_value": 0.001, "p_holm": 0.001, "min_detectable": 0.09, "transfer": 0, "seed": "0", "seeds": 1},
        **{"dtype": "float32", "device": "cpu", "documents_sha256": "d0", "prompts_sha256": "e0"},
        **{"lm_eval": "0.4.13", "aft_harness": "0.1.0", "date": "2026-11-25"},
    }
    return {**made, **changes}


def sweep_row(chosen: int, **changes: Any) -> dict[str, Any]:
    """A row of a sweep."""
    development = {"development_n": 30, "development_accuracy": 0.5, "development_loss": 1.5}
    return row(**{**development, "development_measure": "ranking loss", "chosen": chosen, **changes})


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    table.to_csv(table.to_frame(rows), path)
    return path


def sample(place: int, scores: Sequence[float], right: int, **changes: Any) -> dict[str, Any]:
    """A line of samples of a question with choices."""
    choices = range(len(scores))
    return {
        **{"doc_id": place, "doc_hash": f"d{place}", "prompt_hash": f"p{place}", "target_hash": "t"},
        **{"filter": "none", "metrics": ["acc"], "target": str(right)},
        "arguments": {
            f"gen_args_{each}": {"arg_0": f"Question {place}?", "arg_1": f" choice {each}"} for each in choices
        },
        "filtered_resps": [[str(score), "False"] for score in scores],
        "acc": float(bool(scores) and max(choices, key=lambda each: scores[each]) == right),
        **changes,
    }


def run(samples: dict[str, list[dict[str, Any]]], sha: str = "", **recorded: Any) -> Run:
    """A run of lm-eval; of a booster where a sha256 is given."""
    aft = {"version": "1", "base_model": BASE, "booster_sha256": sha or None, "device": "cpu"}
    if sha:
        made = {"layers": [1], "strength": 1.0, "method": "aft", "objective": "choice", "trained_on": ["a"]}
        aft |= {**made, "trained_n": 9, "seed": 0, "booster_parameters": 8, **recorded}
    results = {
        "config": {"aft": aft, "model_num_parameters": 100, "model_dtype": "torch.float32", "model_revision": "main"},
        "configs": {task: {} for task in samples},
        "versions": dict.fromkeys(samples, 1.0),
        "n-shot": dict.fromkeys(samples, 0),
        "lm_eval_version": "0.4.13",
        "date": 1700000000.0,
        "model_name": "toy",
    }
    return Run(results, samples, sha or "baseline")


def write_run(made: Run, folder: Path, stamp: str = "2026-11-26T10-00-00.000000") -> None:
    """Writes a run as lm-eval does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"results_{stamp}.json").write_text(json.dumps(dict(made.results)))
    for task, lines in made.samples.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"samples_{task}_{stamp}.jsonl").write_text(text, encoding="utf-8")


def booster(seed: float = 1.0, **provenance: Any) -> Booster:
    """A booster with the record of a training."""
    made = {
        **{"base_model": BASE, "method": "aft", "objective": "both", "seed": 0, "dtype": "float32"},
        "tasks": [{"task": "arc_easy", "version": "1.0", "split": "train[0:90]", "n_train": 60, "n_development": 20}],
        "hyperparameters": {"layers": [1], "kind": "static", "epochs": 3, "lr": 0.05, "batch_size": 8, "rank": 8},
        "epoch_losses": [2.0, 1.5, 1.25],
        "training_sha256": "ef" * 32,
    }
    return Booster.static({1: torch.full((8,), seed)}, {**made, **provenance})


def everything_in(folder: Path) -> Path:
    """Writes a folder with all that a report can show, in which every text from outside is hostile."""
    folder.mkdir()
    names = {"booster": HOSTILE, "task": HOSTILE, "metric": HOSTILE, "model": HOSTILE, "trained_on": HOSTILE}
    plain = row(**{**names, "task": "plain_text", "metric": "bits_per_byte", "gained": None, "lost": None})
    rows = [row(), row(**names), plain, row(**{**names, "metric": "acc"}), row(task="b", delta=-0.3)]
    write_table(folder / "board.csv", rows)
    write_table(folder / "sweep.csv", [sweep_row(1, **names), sweep_row(0, **{**names, "layers": HOSTILE})])
    (folder / "</title><b>loss.csv".replace("/", "")).write_text("step,epoch,loss\n1,1,2\n2,1,1\n")
    task = {"task": HOSTILE, "n_train": 3, "split": HOSTILE}
    booster(tasks=[task], licence=HOSTILE, prompting={"system_instruction": HOSTILE}).save(folder / "m.safetensors")
    (folder / "bad<b>.safetensors").write_text("x")
    asked = {"gen_args_0": {"arg_0": HOSTILE, "arg_1": HOSTILE}, "gen_args_1": {"arg_0": HOSTILE, "arg_1": "y"}}
    write_run(run({"a": [sample(0, [-1, -2], 1, arguments=asked)]}), folder / "base")
    write_run(run({"a": [sample(0, [-2, -1], 1, arguments=asked)]}, "s", trained_on=[HOSTILE]), folder / "steered")
    return folder


class Page(HTMLParser):
    """What a browser would see: elements, text, and the data in its scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.text = ""
        self._script: str | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._script = (dict(attrs).get("id") or tag) if tag in ("script", "style") else None

    def handle_endtag(self, tag: str) -> None:
        self._script = None

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
        else:
            self.text += data

    @property
    def data(self) -> Any:
        return json.loads(self.scripts["data"])

    @property
    def details(self) -> Any:
        return json.loads(self.scripts["details"])


def decoded(column: dict[str, Any], count: int) -> list[str]:
    """The texts of a column of the page's data."""
    index = column["index"] or [0] * count
    return [column["values"][place] for place in index]
