"""Runs of lm-eval, from memory or from the folders that it writes, and the table rows that they make.

Pairs each steered run with a baseline of its model, task by task, and pools seeds. Knows what a results file records;
knows nothing of the files that tables are kept in.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aft_harness.boosters.layers import ranges
from aft_harness.boosters.model_identity import ModelIdentity
from aft_harness.boosters.variant import VariantRecord
from aft_harness.errors import FileError, TaskError
from aft_harness.results.pairing import Asked, Line, compared, files_below, mean_samples, read_lines
from aft_harness.results.statistics import Paired
from aft_harness.results.table import COLUMNS, POOLED
from aft_harness.results.text import printable

_RECORDED = {"config": dict, "configs": dict, "versions": dict, "n-shot": dict, "date": int | float}
"""What is read of a results file, and its types."""


@dataclass(frozen=True)
class Run:
    """One run of lm-eval: one model, with a booster or without, on some tasks.

    Attributes:
        results: lm-eval's results, as in its `results_*.json`.
        samples: Lines of its `samples_*.jsonl`, by task.
        source: What messages call it.
        name: What tables call the booster; None for `booster_name`.
    """

    results: Mapping[str, Any]
    samples: Mapping[str, Sequence[Line]]
    source: str
    name: str | None = None

    @cached_property
    def variant(self) -> VariantRecord | None:
        """What `steered-hf` recorded of its model and booster; None for other model types.

        Raises:
            TaskError: The record is malformed.
        """
        record = self.results["config"].get("aft")
        if not record:
            return None
        try:
            return VariantRecord.model_validate(record)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = printable(".".join(("config", "aft", *map(str, first["loc"]))))
            raise TaskError(f"{self.source}: malformed results: {field}: {first['msg'].lower()}") from None

    @cached_property
    def asked(self) -> dict[str, Asked]:
        """What was asked in each task."""
        return {task: Asked.of(lines) for task, lines in self.samples.items()}

    @property
    def steered(self) -> bool:
        """Whether a booster ran."""
        return self.variant is not None and bool(self.variant.booster_sha256)


def read_runs(folder: Path) -> list[Run]:
    """Every run below an output folder of `lm_eval --log_samples`, oldest first.

    Raises:
        FileError: A file cannot be read.
        TaskError: No run, or one without samples, or a malformed file.
    """
    files = sorted(files_below(folder, "results_*.json"), key=lambda file: (file.name, str(file)))
    if not files:
        raise TaskError(f"{folder}: no results; run lm_eval with --output_path and --log_samples")
    return [_read_run(file) for file in files]


def _read_run(file: Path) -> Run:
    try:
        results = json.loads(file.read_bytes())
        beside = {path.name: path for path in file.parent.iterdir()}
    except OSError as error:
        raise FileError(f"{file}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{file}: not an lm_eval results file ({error})") from None
    for key, kind in _RECORDED.items():
        if not isinstance(results, dict) or not isinstance(results.get(key), kind):
            raise TaskError(f"{file}: not an lm_eval results file: it lacks {key}")
    stamp = file.stem.removeprefix("results_")
    names = {task: f"samples_{task}_{stamp}.jsonl" for task in results["configs"]}
    samples = {task: read_lines(beside[name]) for task, name in names.items() if name in beside}
    if not samples:
        raise TaskError(f"{file}: no samples file in the same folder; run lm_eval with --log_samples")
    if empty := [task for task, lines in samples.items() if not lines]:
        raise TaskError(f"{beside[names[empty[0]]]}: empty file; run lm_eval again")
    return Run(results, samples, str(file))


def rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The table rows that runs make: each steered run against a baseline of its model, task by task.

    Boosters that differ in nothing but their seed also make rows that pool them, where they were asked the same.
    `p_holm` holds the uncorrected p-value in rows of the family that is corrected, see `leaderboard.corrected`.

    Raises:
        TaskError: A steered run without a baseline, or one on different documents or with different prompts.
    """
    made: list[dict[str, Any]] = []
    groups: dict[tuple[Any, ...], dict[tuple[Any, ...], list[tuple[Run, Run]]]] = defaultdict(lambda: defaultdict(list))
    for run, baseline, task in paired_runs(runs):
        made += _rows(run, baseline, task, run.samples[task])
        version = _plain(run.results["versions"].get(task))
        groups[_all_but_seed(run)][task, version, run.asked[task]].append((run, baseline))
    for tasks in groups.values():
        for (task, *_), pairs in tasks.items():
            made += _pooled(task, pairs)
    return made


def paired_runs(runs: Sequence[Run]) -> Iterator[tuple[Run, Run, str]]:
    """Each steered run with the baseline that it is compared with, task by task.

    Raises:
        TaskError: A steered run without a baseline.
    """
    baselines = [run for run in runs if not run.steered]
    for run in runs:
        if run.steered:
            yield from ((run, _baseline(run, task, baselines), task) for task in run.samples)


def booster_name(variant: VariantRecord) -> str:
    """A name for a booster without one: how it was made, from what, and where it acts; the same for all its seeds."""
    made_from = "+".join(variant.trained_on) or "prompts"
    return f"{variant.method or 'unknown'} {made_from} L{ranges(variant.layers)}"


def _baseline(run: Run, task: str, baselines: Sequence[Run]) -> Run:
    """The run that a steered one is compared with on a task: of the same model, asked the same, the last of several."""
    candidates = [other for other in baselines if task in other.samples and _same_model(run, other)]
    if not candidates:
        model = _variant(run).base_model.name
        raise TaskError(
            f"{run.source}: no baseline of {printable(f'{model} on {task}')}; also run lm_eval without vector="
        )
    asked = run.asked[task]
    # Where none was asked the same, the nearest: comparing the two says what differs.
    return max(
        reversed(candidates),
        key=lambda other: (other.asked[task] == asked, other.asked[task].documents == asked.documents),
    )


def _same_model(run: Run, baseline: Run) -> bool:
    ours, theirs = run.results["config"], baseline.results["config"]
    if _plain(ours.get("model_dtype")) != _plain(theirs.get("model_dtype")):
        return False
    if baseline.variant is not None:
        return _identity(_variant(run).base_model) == _identity(baseline.variant.base_model)
    # A stock model has no fingerprint: the same name, revision and size must do.
    keys = ("model_revision", "model_num_parameters")
    return all(_plain(ours.get(key)) == _plain(theirs.get(key)) for key in keys) and (
        _plain(run.results.get("model_name")) == _plain(baseline.results.get("model_name"))
    )


def _plain(value: object) -> str:
    """A value of a results file as text; nothing where it is no single value."""
    return "" if value is None or isinstance(value, list | dict) else str(value)


def _identity(model: ModelIdentity) -> str | ModelIdentity:
    return model.fingerprint or model


def _variant(run: Run) -> VariantRecord:
    """The record of a steered run."""
    assert run.variant is not None
    return run.variant


def _rows(
    run: Run, baseline: Run, task: str, samples: Sequence[Line], seed: str | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of one steered run, or of several whose mean `samples` are, on one task."""
    try:
        results = list(compared(baseline.samples[task], samples, means=seed == POOLED))
    except TaskError as error:
        raise TaskError(f"{run.source} and {baseline.source}: {printable(task)}: {error}") from None
    for place, (metric, filter_name, paired) in enumerate(results):
        row = _row(run, task, metric, filter_name, paired, seed)
        # A task is judged by its first metric, a booster at the strength at which it was trained.
        yield {**row, "p_holm": paired.p_value if place == 0 and row["strength"] == 1 else None}


def _row(run: Run, task: str, metric: str, filter_name: str, paired: Paired, seed: str | None) -> dict[str, Any]:
    results, variant = run.results, _variant(run)
    base = variant.base_model
    row = {
        **asdict(paired),
        "model": base.name,
        "revision": base.revision or (base.fingerprint or "")[:12],
        "architecture": base.architecture,
        "parameters": results["config"].get("model_num_parameters"),
        "booster": run.name or booster_name(variant),
        "booster_sha256": variant.booster_sha256,
        "method": variant.method or "",
        "objective": variant.objective or "",
        "trained_on": "+".join(variant.trained_on),
        "trained_n": variant.trained_n,
        "layers": ranges(variant.layers),
        "strength": variant.strength,
        "booster_parameters": variant.booster_parameters,
        "task": task,
        "task_version": _plain(results["versions"].get(task)),
        "num_fewshot": results["n-shot"].get(task),
        "metric": metric,
        "filter": filter_name,
        "delta": paired.delta,
        "transfer": int(task not in variant.trained_on),
        "seed": seed or ("" if variant.seed is None else str(variant.seed)),
        "seeds": 1,
        "dtype": _plain(results["config"].get("model_dtype")).removeprefix("torch."),
        "device": variant.device,
        "documents_sha256": run.asked[task].documents,
        "prompts_sha256": run.asked[task].prompts,
        "lm_eval": _plain(results.get("lm_eval_version")),
        "aft_harness": variant.version,
        "date": _date(run),
    }
    return {column: row.get(column) for column in COLUMNS}


def _date(run: Run) -> str:
    try:
        return datetime.datetime.fromtimestamp(float(run.results["date"]), datetime.UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):  # not a number, or a time that no calendar has
        raise TaskError(f"{run.source}: malformed results: date: not a valid date") from None


def _all_but_seed(run: Run) -> tuple[Any, ...]:
    """What boosters that are pooled have in common: all but their seed, and so the name that a user gave."""
    variant = _variant(run)
    return (
        *(run.name, _identity(variant.base_model), _plain(run.results["config"].get("model_dtype"))),
        *(variant.method, variant.objective, variant.trained_on),
        *(variant.trained_n, variant.layers, variant.strength, variant.booster_parameters),
    )


def _pooled(task: str, pairs: Sequence[tuple[Run, Run]]) -> Iterator[dict[str, Any]]:
    seeds = {_variant(run).seed: (run, baseline) for run, baseline in pairs}  # the last of equal ones
    if len(seeds) < 2:
        return
    (first, baseline), *_ = seeds.values()
    samples = mean_samples([run.samples[task] for run, _ in seeds.values()])
    identities = sorted(str(_variant(run).booster_sha256) for run, _ in seeds.values())
    digest = hashlib.sha256("".join(identities).encode()).hexdigest()
    for row in _rows(first, baseline, task, samples, POOLED):
        yield {**row, "booster_sha256": digest, "seeds": len(seeds)}
