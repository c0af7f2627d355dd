"""The per-document results that lm-eval writes with `--log_samples`, and pairing two runs of them.

Knows lm-eval's output folders. A pair is one document under two models; documents whose prompts differ are no pair.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aft_harness.errors import TaskError
from aft_harness.results.statistics import Paired, compare

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
    return by_document(lines, chosen)


def by_document(lines: Iterable[Mapping[str, Any]], filter_name: str) -> Samples:
    """The samples that one filter of a task made, by the key under which two runs are paired."""
    return {(line["doc_hash"], line["doc_id"]): line for line in lines if line["filter"] == filter_name}


def select(samples: Samples, docs: str | None) -> Samples:
    """The samples whose document id lies in a slice `a:b`; all of them for None.

    Raises:
        TaskError: Not of that form, or no document lies there.
    """
    if docs is None:
        return samples
    start, stop = bounds(docs)
    kept = {key: line for key, line in samples.items() if start <= key[1] and (stop is None or key[1] < stop)}
    if not kept:
        raise TaskError(f"--docs {docs}: no document of {len(samples)} lies there")
    return kept


def bounds(docs: str) -> tuple[int, int | None]:
    """Start and stop of a slice `a:b` of documents, either of which may be left out.

    Raises:
        TaskError: Not of that form.
    """
    match = re.fullmatch(r"(\d*):(\d*)", docs)
    if match is None:
        raise TaskError(f"--docs {docs}: expected a slice such as 400:1188")
    return int(match[1] or 0), int(match[2]) if match[2] else None


def comparable(outcome: object) -> bool:
    """Whether an outcome is a number by which documents are compared: a perplexity, say, is a sum over all of them."""
    return isinstance(outcome, int | float) and math.isfinite(outcome)


def mean_samples(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Lines of samples in which each comparable metric is a document's mean over several runs.

    Raises:
        TaskError: The runs hold other documents.
    """
    indexed = [{(line["filter"], line["doc_hash"], line["doc_id"]): line for line in lines} for lines in runs]
    if any(set(one) != set(indexed[0]) for one in indexed):
        raise TaskError("the runs of several seeds hold different documents: they cannot be pooled")
    means = []
    for key, line in indexed[0].items():
        members = [one[key] for one in indexed]
        pooled = {
            metric: sum(member[metric] for member in members) / len(members)
            for metric in line["metrics"]
            if all(comparable(member[metric]) for member in members)
        }
        means.append({**line, **pooled})
    return means


def compare_samples(baseline: Samples, steered: Samples, metric: str, *, means: bool = False) -> Paired:
    """Compares two runs on a metric, document by document.

    Args:
        baseline: The one.
        steered: The other.
        metric: Name of the metric.
        means: One of them is from `mean_samples`.

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
    if any(metric not in line for line in (*baseline.values(), *steered.values())):
        known = next(iter(baseline.values())).get("metrics", [])
        raise TaskError(f"the samples have no metric {metric!r}; they have {', '.join(map(str, known))}")
    keys = sorted(baseline, key=lambda key: key[1])
    if not all(comparable(line[metric]) for line in (*baseline.values(), *steered.values())):
        raise TaskError(f"metric {metric!r} is not one number a document; it cannot be compared document by document")
    return compare([baseline[key][metric] for key in keys], [steered[key][metric] for key in keys], means=means)


def compared(
    baseline: Sequence[Mapping[str, Any]], steered: Sequence[Mapping[str, Any]], *, means: bool = False
) -> Iterator[tuple[str, str, Paired]]:
    """Metric, filter and comparison for every metric of a task that is one number a document, the task's first first.

    Args:
        baseline: Lines of samples of one run.
        steered: Those of the other.
        means: See `compare_samples`.

    Raises:
        TaskError: See `compare_samples`.
    """
    for name in dict.fromkeys(line["filter"] for line in steered):
        before, after = by_document(baseline, name), by_document(steered, name)
        for metric in steered[0]["metrics"]:
            if all(comparable(line.get(metric)) for line in (*before.values(), *after.values())):
                yield metric, name, compare_samples(before, after, metric, means=means)
