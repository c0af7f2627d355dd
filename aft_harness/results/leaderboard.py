"""Leaderboards: what boosters change on lm-eval tasks, as a CSV file that many runs and processes add to.

Knows runs of lm-eval, from memory or from the folders that it writes, pairs each steered run with a baseline, and keeps
the corrected p-values of the whole table right. One row a model x booster x strength x task x metric x seed.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from aft_harness.boosters.booster import write_atomically
from aft_harness.errors import TaskError
from aft_harness.results.pairing import compared, mean_samples
from aft_harness.results.report import layer_ranges
from aft_harness.results.statistics import Paired, holm

TEXT = (
    *("model", "revision", "architecture", "booster", "booster_sha256", "method", "objective", "trained_on", "layers"),
    *("task", "task_version", "metric", "filter", "seed", "dtype", "device", "lm_eval", "aft_harness", "date"),
)
COUNTS = ("parameters", "trained_n", "booster_parameters", "num_fewshot", "n", "gained", "lost", "transfer")
COLUMNS = (
    *("model", "revision", "architecture", "parameters", "booster", "booster_sha256", "method", "objective"),
    *("trained_on", "trained_n", "layers", "strength", "booster_parameters", "task", "task_version", "num_fewshot"),
    *("metric", "filter", "n", "baseline", "steered", "delta", "ci_low", "ci_high", "gained", "lost", "p_value"),
    *("p_holm", "min_detectable", "transfer", "seed", "dtype", "device", "lm_eval", "aft_harness", "date"),
)
"""Of the file, in this order. `p_holm` is empty in rows outside the family that is corrected: metrics that are not the
task's first, strengths that are not the booster's own, and single seeds where a row pools them."""

POOLED = "pooled"
"""The seed of a row that compares each document's mean over several seeds."""

_WHAT = ("model", "revision", "dtype", "booster", "strength", "task", "task_version", "num_fewshot", "metric", "filter")


@dataclass(frozen=True)
class Run:
    """One run of lm-eval: one model, with a booster or without, on some tasks.

    Attributes:
        results: lm-eval's results, as in its `results_*.json`.
        samples: Lines of its `samples_*.jsonl`, by task.
        source: What messages call it.
    """

    results: Mapping[str, Any]
    samples: Mapping[str, Sequence[Mapping[str, Any]]]
    source: str

    @property
    def told(self) -> Mapping[str, Any]:
        """What `steered-hf` says of its model and booster; empty for other model types."""
        return self.results["config"].get("aft") or {}

    @property
    def steered(self) -> bool:
        """Whether a booster ran."""
        return bool(self.told.get("booster_sha256"))


def read_runs(folder: Path) -> list[Run]:
    """Every run below an output folder of `lm_eval --log_samples`, oldest first.

    Raises:
        TaskError: No run, or one without samples, or files that cannot be read.
    """
    found = sorted(folder.rglob("results_*.json"), key=lambda file: (file.name, str(file)))
    if not found:
        raise TaskError(f"{folder}: holds no results; run lm_eval with --output_path and --log_samples")
    runs = []
    for file in found:
        stamp = file.stem.removeprefix("results_")
        try:
            results = json.loads(file.read_text(encoding="utf-8"))
            samples = {
                task: [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
                for task in results["configs"]
                if (lines := file.with_name(f"samples_{task}_{stamp}.jsonl")).is_file()
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TaskError(f"{file}: is not a results file of lm_eval ({type(error).__name__}: {error})") from None
        if not samples:
            raise TaskError(f"{file}: has no samples beside it; run lm_eval with --log_samples")
        runs.append(Run(results, samples, str(file)))
    return runs


def rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The rows of a leaderboard that runs make: each steered one against a baseline of its model, task by task.

    Boosters that differ in nothing but their seed also make rows that pool them.

    Raises:
        TaskError: A steered run without a baseline, or one on other documents or with other prompts.
    """
    baselines = [run for run in runs if not run.steered]
    found: list[dict[str, Any]] = []
    groups: dict[tuple[Any, ...], dict[str, list[tuple[Run, Run]]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if not run.steered:
            continue
        for task in run.samples:
            baseline = _baseline(run, task, baselines)
            found += _rows(run, baseline, task, run.samples[task])
            groups[_alike(run)][task].append((run, baseline))
    for tasks in groups.values():
        for task, pairs in tasks.items():
            found += _pooled(task, pairs)
    return found


def add(path: Path, new: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """Adds rows to a leaderboard and corrects its p-values anew; others may add at the same time.

    A row that is there already changes nothing; one of the same thing with other numbers is replaced.

    Args:
        path: The CSV file, made if it does not exist.
        new: From `rows`.

    Returns:
        How many rows were added, and how many replaced.

    Raises:
        TaskError: The file is no leaderboard.
        BoosterError: It cannot be written.
    """
    with FileLock(path.with_name(f".{path.name}.lock")):
        known = load(path).to_dict("records") if path.exists() else []
        table: dict[tuple[str, ...], Mapping[str, Any]] = {_key(row): row for row in map(_named, known)}
        added = replaced = 0
        for row in new:
            key = _key(row)
            if key not in table:
                added += 1
            elif not _same(table[key], row):
                replaced += 1
            else:
                continue
            table[key] = dict(row)
        if added or replaced:
            write_atomically(path, _text(_corrected(table.values())).encode())
    return added, replaced


def load(path: Path) -> pd.DataFrame:
    """A leaderboard as a table; what is empty is missing.

    Raises:
        TaskError: The file is no leaderboard.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise TaskError(f"{path}: cannot be read as a leaderboard ({' '.join(str(error).split())})") from None
    if missing := [column for column in COLUMNS if column not in table]:
        raise TaskError(f"{path}: is no leaderboard: it lacks the column {missing[0]}")
    try:
        for column in set(COLUMNS) - set(TEXT):
            # By way of Python's float, which reads back the very number that was written.
            numbers = pd.array([float(text) if text else None for text in table[column]], dtype="Float64")
            table[column] = (
                numbers.astype("Int64") if column in COUNTS else numbers.to_numpy("float64", na_value=math.nan)
            )
    except (TypeError, ValueError) as error:
        raise TaskError(f"{path}: column {column}: {error}") from None
    return table[list(COLUMNS)]


def _baseline(run: Run, task: str, baselines: Sequence[Run]) -> Run:
    """The run that a steered one is compared with on a task: of the same model, on the same documents."""
    name = run.told["base_model"]["name"]
    fitting = [other for other in baselines if task in other.samples and _same_model(run, other)]
    if not fitting:
        raise TaskError(f"{run.source}: has no baseline of {name} on {task}; run lm_eval without vector= too")
    documents = {(line["doc_hash"], line["doc_id"]) for line in run.samples[task]}
    same = [
        other for other in fitting if {(line["doc_hash"], line["doc_id"]) for line in other.samples[task]} == documents
    ]
    return (same or fitting)[-1]


def _same_model(run: Run, baseline: Run) -> bool:
    ours, theirs = run.results["config"], baseline.results["config"]
    if str(ours.get("model_dtype")) != str(theirs.get("model_dtype")):
        return False
    if baseline.told:
        return bool(run.told["base_model"]["fingerprint"] == baseline.told["base_model"]["fingerprint"])
    # A stock model has no fingerprint: the same name, revision and size must do.
    return all(ours.get(key) == theirs.get(key) for key in ("model_revision", "model_num_parameters")) and (
        run.results.get("model_name") == baseline.results.get("model_name")
    )


def _rows(
    run: Run, baseline: Run, task: str, samples: Sequence[Mapping[str, Any]], seed: str | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of one steered run, or of several whose mean `samples` are, on one task."""
    try:
        found = list(compared(baseline.samples[task], samples, means=seed == POOLED))
    except TaskError as error:
        raise TaskError(f"{run.source} and {baseline.source}: {task}: {error}") from None
    for place, (metric, name, paired) in enumerate(found):
        row = _row(run, task, metric, name, paired, seed)
        # A task is judged by its first metric, a booster at the strength at which it was trained.
        yield {**row, "p_holm": paired.p_value if place == 0 and row["strength"] == 1 else None}


def _row(run: Run, task: str, metric: str, name: str, paired: Paired, seed: str | None) -> dict[str, Any]:
    results, told = run.results, run.told
    base, trained_on = told["base_model"], list(told["trained_on"])
    measured = {key: value for key, value in asdict(paired).items() if key != "n"}
    row = {
        "model": base["name"],
        "revision": base["revision"] or base["fingerprint"][:12],
        "architecture": base["architecture"],
        "parameters": results["config"].get("model_num_parameters"),
        "booster": booster_name(told),
        "booster_sha256": told["booster_sha256"],
        "method": told["method"] or "",
        "objective": told["objective"] or "",
        "trained_on": "+".join(trained_on),
        "trained_n": told.get("trained_n"),
        "layers": layer_ranges(told["layers"]),
        "strength": float(told["strength"]),
        "booster_parameters": told["booster_parameters"],
        "task": task,
        "task_version": str(results["versions"].get(task, "")),
        "num_fewshot": results["n-shot"].get(task),
        "metric": metric,
        "filter": name,
        "n": paired.n,
        **measured,
        "delta": paired.delta,
        "transfer": int(task not in trained_on),
        "seed": seed or str(told.get("seed") if told.get("seed") is not None else ""),
        "dtype": str(results["config"].get("model_dtype", "")).removeprefix("torch."),
        "device": told.get("device", ""),
        "lm_eval": str(results.get("lm_eval_version", "")),
        "aft_harness": told["version"],
        "date": datetime.datetime.fromtimestamp(float(results["date"]), datetime.UTC).date().isoformat(),
    }
    return {column: row.get(column) for column in COLUMNS}


def booster_name(told: Mapping[str, Any]) -> str:
    """What a table calls a booster: how it was made, from what, and where it acts; the same for all of its seeds."""
    made_from = "+".join(told["trained_on"]) or "prompts"
    return f"{told['method'] or 'unknown'} {made_from} L{layer_ranges(told['layers'])}"


def _alike(run: Run) -> tuple[Any, ...]:
    """What boosters that are pooled have in common: all but their seed."""
    told = run.told
    same = ("method", "objective", "trained_on", "trained_n", "layers", "strength", "booster_parameters")
    return (told["base_model"]["fingerprint"], *(json.dumps(told.get(key)) for key in same))


def _pooled(task: str, pairs: Sequence[tuple[Run, Run]]) -> Iterator[dict[str, Any]]:
    seeds = {pair[0].told.get("seed"): pair for pair in pairs}  # the last of equal ones
    if len(seeds) < 2:
        return
    (run, baseline), *_ = seeds.values()
    members = [one.samples[task] for one, _ in seeds.values()]
    digest = hashlib.sha256("".join(sorted(one.told["booster_sha256"] for one, _ in seeds.values())).encode())
    for row in _rows(run, baseline, task, mean_samples(members), POOLED):
        yield {**row, "booster_sha256": digest.hexdigest()}


def _named(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(column): value for column, value in row.items()}


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What a row is about. One that pools seeds is about the same thing whatever the seeds."""
    which = "" if row["seed"] == POOLED else str(row["booster_sha256"])
    return (*_subject(row), str(row["seed"]), which)


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two rows say the same, but for when, and for the correction, which depends on the table."""
    return all(
        (pd.isna(one[column]) and pd.isna(other[column])) or one[column] == other[column]
        for column in COLUMNS
        if column not in ("date", "p_holm")
    )


def _corrected(table: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows in their order, with `p_holm` of every family."""
    ordered = [dict(row) for row in sorted(table, key=_key)]
    pooled = {_subject(row) for row in ordered if row["seed"] == POOLED}
    families: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in ordered:
        if row["seed"] != POOLED and _subject(row) in pooled:
            row["p_holm"] = None
        if not pd.isna(row["p_holm"]):
            families[row["revision"]].append(row)
    for family in families.values():
        for row, corrected in zip(family, holm([row["p_value"] for row in family]), strict=True):
            row["p_holm"] = corrected
    return ordered


def _subject(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[column]) for column in _WHAT)


def _text(table: Sequence[Mapping[str, Any]]) -> str:
    frame = pd.DataFrame(table, columns=list(COLUMNS))
    frame = frame.astype({column: "Int64" for column in COUNTS})
    return frame.to_csv(index=False)


def shown(table: pd.DataFrame) -> list[str]:
    """A leaderboard as lines of Markdown; a star marks what stands after correction at the level of 5%.

    Args:
        table: From `load`, or rows of it.
    """
    head = (
        *("model", "trained on", "booster", "strength", "seed", "task", "metric", "n", "baseline", "steered"),
        *("change [95% interval]", "p", "p (Holm)"),
    )
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in table.to_dict("records"):
        star = " *" if pd.notna(row["p_holm"]) and row["p_holm"] < 0.05 else ""
        metric = row["metric"] if row["filter"] == "none" else f"{row['metric']},{row['filter']}"
        cells = (
            row["model"],
            row["trained_on"],
            f"{row['method']} L{row['layers']}",
            f"{row['strength']:g}",
            row["seed"],
            row["task"],
            metric,
            row["n"],
            f"{row['baseline']:.4f}",
            f"{row['steered']:.4f}",
            f"{row['delta']:+.4f} [{row['ci_low']:+.4f}, {row['ci_high']:+.4f}]{star}",
            f"{row['p_value']:.2g}",
            "" if pd.isna(row["p_holm"]) else f"{row['p_holm']:.2g}",
        )
        lines.append(f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |")
    return lines
