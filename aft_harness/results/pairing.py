"""The per-document results that lm-eval writes with `--log_samples`, and pairing two runs of them.

Knows lines of samples and where lm-eval puts them. Knows nothing of boosters or tables. A pair is one document under
two models; documents whose prompts differ are no pair.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aft_harness.errors import FileError, TaskError
from aft_harness.files import is_temporary
from aft_harness.results.statistics import Paired, compare
from aft_harness.results.text import printable
from aft_harness.slices import Slice

Line = Mapping[str, Any]
"""One line of samples: a document, what a filter made of the responses, and its metrics."""

Samples = Mapping[tuple[str, int], Line]
"""Samples of one task and filter, by document hash and id."""

_KEYS = {"doc_id": int, "doc_hash": str, "prompt_hash": str, "target_hash": str, "filter": str}
"""What a line needs to be paired, and of which type."""

_LARGEST = 1e100
"""Outcomes below can be squared and summed without overflow."""

_MUST_AGREE = ("prompt_hash", "target_hash")
"""What a document has in common in two runs that are compared or pooled."""


@dataclass(frozen=True)
class Asked:
    """What the samples of a task answer, as short digests: results on something else are results of something else.

    Attributes:
        documents: Of the documents.
        prompts: Of the documents, what the model read of each, and what was right: few-shot examples, chat template
            and system instruction are in it.
    """

    documents: str
    prompts: str

    @classmethod
    def of(cls, lines: Iterable[Line]) -> Asked:
        """What lines of samples answer, whatever their order, filters and metrics."""
        keys = ("doc_id", "doc_hash", "prompt_hash", "target_hash")
        found = sorted({tuple(line[key] for key in keys) for line in lines})
        return cls(_digest([key[:2] for key in found]), _digest(found))


def _digest(keys: Sequence[tuple[Any, ...]]) -> str:
    return _short(json.dumps(keys))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def runs_of_documents(hashes: Sequence[str], length: int) -> Iterator[str]:
    """The digest (`Asked.documents`) of each run of consecutive documents, by where it starts.

    Args:
        hashes: lm-eval's hash of every document of a task, by document id.
        length: Number of documents in a run.
    """
    keys = [json.dumps(key) for key in enumerate(hashes)]
    for start in range(len(keys) - length + 1):
        yield _short(f"[{', '.join(keys[start : start + length])}]")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of one samples file.

    Raises:
        FileError: It cannot be read.
        TaskError: A line is not JSON, or not a sample of lm-eval; names the file and the line.
    """
    lines: list[dict[str, Any]] = []
    try:
        # Text keeps U+2028 and U+0085 raw, which `str.splitlines` takes for ends of lines: only "\n" ends one here.
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, text in enumerate(file, start=1):
                if text.strip():
                    lines.append(_line(text, f"{path}: line {number}"))
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: not an lm_eval samples file ({error.reason} in UTF-8 text)") from None
    return lines


def _line(text: str, where: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{where} is not valid JSON ({error}); run lm_eval again") from None
    for key, kind in _KEYS.items():
        if not isinstance(line, dict) or not isinstance(line.get(key), kind):
            raise TaskError(f"{where} is not an lm_eval sample: it lacks {key}")
    return dict(line)


def read_samples(folder: Path, task: str, filter_name: str | None = None) -> Samples:
    """The newest samples of a task below an output folder of lm-eval.

    Args:
        folder: What was given as `--output_path`.
        task: Task name.
        filter_name: Name of a filter; None takes the only one.

    Raises:
        FileError: A file cannot be read.
        TaskError: No samples, several filters to choose from, none of that name, or a malformed file.
    """
    # The time of the run follows the task's name; another task's name may start with this one's.
    dated = re.compile(re.escape(f"samples_{task}_") + r"\d{4}-\d\d-\d\d[^_]*\.jsonl")
    found = files_below(folder, f"samples_{glob.escape(task)}_*.jsonl")
    files = [file for file in found if dated.fullmatch(file.name)]
    if not files:
        raise TaskError(f"{folder}: no samples of {printable(task)}; run lm_eval with --output_path and --log_samples")
    newest = max(files, key=lambda file: (file.name, str(file)))
    lines = read_lines(newest)
    if not lines:
        raise TaskError(f"{newest}: empty file; run lm_eval again")
    filters = sorted({str(line["filter"]) for line in lines})
    if filter_name is None and len(filters) > 1:
        raise TaskError(f"{newest}: has the filters {_listed(filters)}; name one of them")
    if filter_name is not None and filter_name not in filters:
        raise TaskError(f"{newest}: has no filter {printable(filter_name)}; it has {_listed(filters)}")
    return by_document(lines, filter_name or filters[0])


def files_below(folder: Path, pattern: str) -> list[Path]:
    """The files below a folder whose names match a pattern.

    Raises:
        FileError: The folder cannot be read.
    """
    try:
        # What a writer was making when it was killed is not there.
        return [path for path in folder.rglob(pattern) if not is_temporary(path.relative_to(folder))]
    except OSError as error:
        raise FileError(f"{folder}: cannot be read ({error.strerror or error})") from None


def by_document(lines: Iterable[Line], filter_name: str) -> Samples:
    """The samples that one filter of a task made, by the key under which two runs are paired.

    Raises:
        TaskError: A document is there twice, with different outcomes.
    """
    found: dict[tuple[str, int], Line] = {}
    for line in lines:
        if line["filter"] == filter_name:
            first = found.setdefault((line["doc_hash"], line["doc_id"]), line)
            if first is not line and _scalars(first) != _scalars(line):
                raise TaskError(
                    f"document {line['doc_id']} has two different samples, so they are not from the same run"
                )
    return found


def _scalars(line: Line) -> dict[str, object]:
    return {key: value for key, value in line.items() if isinstance(value, str | int | float)}


def _listed(names: Iterable[object]) -> str:
    return printable(", ".join(map(str, names)))


def select(samples: Samples, docs: Slice | None) -> Samples:
    """The samples whose document id lies in a slice; all of them for None.

    Raises:
        TaskError: No document lies there.
    """
    if docs is None:
        return samples
    kept = {key: line for key, line in samples.items() if key[1] in docs}
    if not kept:
        raise TaskError(f"documents {docs}: none of the {len(samples)} documents with samples is in this range")
    return kept


def comparable(outcome: object) -> bool:
    """Whether an outcome is a number by which documents are compared: a perplexity, say, is a sum over all of them."""
    return isinstance(outcome, int | float) and abs(outcome) < _LARGEST  # which NaN and infinity are not


def _metrics(line: Line) -> list[str]:
    names = line.get("metrics")
    if not names or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TaskError("the samples do not list their metrics; use a later version of lm_eval")
    return names


def mean_samples(runs: Sequence[Sequence[Line]]) -> list[dict[str, Any]]:
    """Lines of samples in which each comparable metric is a document's mean over several runs.

    Raises:
        TaskError: The runs hold different documents, or the same ones with different prompts.
    """
    indexed = [
        {(name, *key): line for name in _filters(lines) for key, line in by_document(lines, name).items()}
        for lines in runs
    ]
    first = indexed[0]
    if any(set(run) != set(first) for run in indexed):
        raise TaskError("the runs of different seeds contain different documents and cannot be pooled")
    means = []
    for key, line in first.items():
        members = [run[key] for run in indexed]
        if any(member[name] != line[name] for member in members for name in _MUST_AGREE):
            raise TaskError("the runs of different seeds used different prompts and cannot be pooled")
        pooled = {
            # Exact fractions: the mean of equal numbers is that number, which a sum of floats divided by n need not be.
            metric: statistics.mean(float(member[metric]) for member in members)
            for metric in _metrics(line)
            if all(comparable(member.get(metric)) for member in members)
        }
        means.append({**line, **pooled})
    return means


def compare_samples(baseline: Samples, steered: Samples, metric: str, *, means: bool = False) -> Paired:
    """Compares two runs on a metric, document by document.

    Args:
        baseline: The run that changes are counted from.
        steered: The other run.
        metric: Name of the metric.
        means: One of them is from `mean_samples`.

    Raises:
        TaskError: The runs hold different documents, or the same ones with different prompts.
    """
    if set(baseline) != set(steered):
        raise TaskError(
            f"the runs contain different documents ({len(baseline)} and {len(steered)}) and cannot be paired"
        )
    if not baseline:
        raise TaskError("the runs contain no documents: there is nothing to compare")
    for key, before in baseline.items():
        for name in _MUST_AGREE:
            if before[name] != steered[key][name]:
                raise TaskError(
                    f"document {before['doc_id']} has a different {name} in each run; the runs cannot be paired"
                )
    if any(metric not in line for line in (*baseline.values(), *steered.values())):
        raise TaskError(f"the samples have no metric {metric!r}; they have {_known_metrics(baseline)}")
    keys = sorted(baseline, key=lambda key: key[1])
    if not all(comparable(line[metric]) for line in (*baseline.values(), *steered.values())):
        raise TaskError(f"metric {metric!r} is not one number per document and cannot be compared document by document")
    return compare([baseline[key][metric] for key in keys], [steered[key][metric] for key in keys], means=means)


def _known_metrics(samples: Samples) -> str:
    names = next(iter(samples.values())).get("metrics")
    return _listed(names) if isinstance(names, list) else "none"


def _filters(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(line["filter"] for line in lines))


def compared(
    baseline: Sequence[Line], steered: Sequence[Line], *, means: bool = False
) -> Iterator[tuple[str, str, Paired]]:
    """Metric, filter and comparison for every metric of a task that is one number a document, the task's first first.

    Args:
        baseline: Lines of samples of one run.
        steered: Those of the other.
        means: See `compare_samples`.

    Raises:
        TaskError: See `compare_samples`.
    """
    for name in _filters(steered):
        before, after = by_document(baseline, name), by_document(steered, name)
        for metric in _metrics(steered[0]):
            if all(comparable(line.get(metric)) for line in (*before.values(), *after.values())):
                yield metric, name, compare_samples(before, after, metric, means=means)
