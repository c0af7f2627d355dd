"""The per-document results that lm-eval writes with `--log_samples`, and pairing two runs of them.

Knows lm-eval's output folders. A pair is one document under two models; documents whose prompts differ are no pair.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aft_harness.errors import TaskError
from aft_harness.statistics import PairedCount, compare

Samples = Mapping[tuple[str, int], Mapping[str, Any]]
"""Samples of one task and filter, by document hash and id."""


def read_samples(folder: Path, task: str, filter_name: str | None = None) -> Samples:
    """The newest samples of a task below an output folder of lm-eval.

    Args:
        folder: What was given as `--output_path`.
        task: Task name.
        filter_name: Name of a filter; None takes the only one.

    Raises:
        TaskError: No samples, or several filters to choose from.
    """
    # The time of the run follows the task's name; another task's name may start with this one's.
    files = sorted(
        (file for file in folder.rglob(f"samples_{task}_*.jsonl") if file.stem[len(f"samples_{task}_") :][:2] == "20"),
        key=lambda file: file.name,
    )
    if not files:
        raise TaskError(f"{folder}: holds no samples of {task}; run lm_eval with --output_path and --log_samples")
    lines = [json.loads(line) for line in files[-1].read_text(encoding="utf-8").splitlines()]
    filters = {line["filter"] for line in lines}
    if filter_name is None and len(filters) > 1:
        raise TaskError(f"{files[-1]}: has the filters {', '.join(sorted(filters))}; name one")
    chosen = filter_name or next(iter(filters))
    return {(line["doc_hash"], line["doc_id"]): line for line in lines if line["filter"] == chosen}


def compare_samples(baseline: Samples, steered: Samples, metric: str) -> PairedCount:
    """Compares two runs on a 0/1 metric, document by document.

    Raises:
        TaskError: The runs hold other documents, or the same ones with other prompts.
    """
    if set(baseline) != set(steered):
        raise TaskError(
            f"the runs hold different documents ({len(baseline)} and {len(steered)}): they cannot be paired"
        )
    for key, before in baseline.items():
        for what in ("prompt_hash", "target_hash"):
            if before[what] != steered[key][what]:
                raise TaskError(f"document {before['doc_id']} has another {what} in each run: they cannot be paired")
    keys = sorted(baseline, key=lambda key: key[1])
    return compare([baseline[key][metric] for key in keys], [steered[key][metric] for key in keys])
