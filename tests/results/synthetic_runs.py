"""Runs as lm-eval reports them, of given outcomes: what the tests of this folder are made of."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aft_harness.results.runs import Run

BASE = {"name": "toy", "revision": None, "fingerprint": "f" * 64, "architecture": "ToyForCausalLM"}


def lines(outcomes: Iterable[float], metric: str = "acc", prompt: str = "p") -> list[dict[str, Any]]:
    return [
        {
            **{"doc_id": place, "doc_hash": f"d{place}", "prompt_hash": f"{prompt}{place}", "target_hash": "t"},
            **{"filter": "none", "metrics": [metric, "sum"], metric: float(outcome), "sum": [1.0, 2]},
        }
        for place, outcome in enumerate(outcomes)
    ]


def run(
    samples: dict[str, list[dict[str, Any]]],
    sha: str = "",
    seed: int = 0,
    base: Any = None,
    name: str | None = None,
    **recorded: Any,
) -> Run:
    aft = {"version": "1", "base_model": {**BASE, **(base or {})}, "booster_sha256": sha or None, "device": "cpu"}
    if sha:
        made = {"layers": [3, 4], "strength": 1.0, "method": "aft", "objective": "choice", "trained_on": ["a"]}
        aft |= {**made, "trained_n": 9, "seed": seed, "booster_parameters": 64, **recorded}
    results = {
        "config": {"aft": aft, "model_num_parameters": 100, "model_dtype": "torch.float32", "model_revision": "main"},
        "configs": {task: {} for task in samples},
        "versions": dict.fromkeys(samples, 1.0),
        "n-shot": dict.fromkeys(samples, 0),
        "lm_eval_version": "0.4.13",
        "date": 1700000000.0 + seed,
        "model_name": "toy",
    }
    return Run(results, samples, sha or "baseline", name)


def write(run: Run, folder: Path, stamp: str) -> Path:
    """Writes a run as lm-eval does, and returns its results file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"results_{stamp}.json"
    path.write_text(json.dumps(dict(run.results)))
    for task, samples in run.samples.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in samples)
        (folder / f"samples_{task}_{stamp}.jsonl").write_text(text, encoding="utf-8")
    return path
