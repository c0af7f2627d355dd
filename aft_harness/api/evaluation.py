"""Evaluation and transfer studies: the commands `aft evaluate` and `aft transfer` are thin over these functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from aft_harness.boosters import references
from aft_harness.boosters.variant import BASELINE, Variant, distinct
from aft_harness.engine.gguf_file import is_gguf
from aft_harness.errors import FileError, ModelError, ParseError
from aft_harness.files import make_folder
from aft_harness.harness import evaluation, evaluation_forecast
from aft_harness.harness.blueprint import Blueprint, Forecast
from aft_harness.harness.evaluation import VariantResults
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.opening import DEFAULT_BATCH_SIZE, Model, opened_for_evaluation
from aft_harness.harness.pair_examples import evaluated_pairs
from aft_harness.harness.pair_sources import Pairs, read_all, refuse_same_names
from aft_harness.harness.score_store import ScoreStore
from aft_harness.harness.selection import PromptFormat, task_names
from aft_harness.harness.tasks import Tasks
from aft_harness.progress import OnProgress, ignore
from aft_harness.results import leaderboard, table
from aft_harness.results.runs import rows
from aft_harness.slices import Slice
from aft_harness.studies import cluster
from aft_harness.studies import transfer as transfer_study
from aft_harness.studies.plan import Plan
from aft_harness.studies.storage import is_local
from aft_harness.studies.workers import Place

Boosters = references.VectorSpec | Mapping[str, Any] | Sequence[Any]
"""Boosters to evaluate: anything that `vector=` accepts, a list of these, or a mapping from names to these."""


@dataclass(frozen=True)
class EvaluationResult:
    """The results of an evaluation.

    Attributes:
        table: One row per booster, task and metric, paired with the baseline, with the columns of a leaderboard.
        variants: lm-eval's own results for the baseline and for each booster.
    """

    table: pd.DataFrame
    variants: list[VariantResults]

    def __str__(self) -> str:
        """The table as text."""
        return table.render(self.table, "table")


def evaluate(
    model: Model,
    tokenizer: Any = None,
    tasks: str | Sequence[str] = (),
    boosters: Boosters = (),
    *,
    pairs: Pairs = (),
    limit: int | None = None,
    docs: Slice | str | None = None,
    prompt_format: PromptFormat | None = None,
    include_path: Sequence[str | Path] = (),
    output: str | Path | None = None,
    use_cache: str | Path | None = None,
    confirm_run_unsafe_code: bool = False,
    model_args: Mapping[str, Any] | None = None,
    on_progress: OnProgress = ignore,
) -> EvaluationResult:
    """Evaluates boosters against a shared baseline in one pass over the tasks.

    Args:
        model: A hub id, a folder, a loaded model, or a `.gguf` file.
        tokenizer: Tokenizer of a loaded model; of a file, the checkpoint whose tokenizer must make the same tokens.
        tasks: lm-eval tasks or groups.
        boosters: Boosters, or files and addresses in the syntax of `vector=`, or a mapping from names to these.
        pairs: Pairs of texts, as in `train`; of pairs with one prompt the first counts.
        limit: Maximum number of documents per task; None means all.
        docs: Documents to evaluate, as a slice `a:b` of ids.
        prompt_format: How prompts are formatted.
        include_path: Folders with additional task YAML files.
        output: Folder for lm-eval's own output files, with one subfolder per variant.
        use_cache: File that stores computed answers, so that an interrupted run can resume.
        confirm_run_unsafe_code: Whether to allow tasks that execute model-generated code.
        model_args: See `opened`.
        on_progress: Called with the number of scored requests of a task and the total.

    Raises:
        AftError: The model, a booster or a task cannot be used; the message is one line.
    """
    variants = distinct([BASELINE, *_variants(boosters)])
    source = Tasks(include_path)
    given = [each for _, each in read_all(pairs)]
    names = task_names(tasks) if tasks or not given else []
    source.check(names)
    refuse_same_names(asked := [*names, *(each.name for each in given)])
    limit, ids = _positive(limit), _slice(docs)
    with opened_for_evaluation(model, tokenizer, **(model_args or {})) as lm, _kept(use_cache) as store:
        for each in given:
            if not isinstance(lm, SteeredHFLM):
                raise ModelError(f"{model}: pairs cannot be evaluated with a GGUF file")
            source.add(each.name, evaluated_pairs(each, lm, prompt_format))
        found = evaluation.evaluate(
            lm,
            variants,
            asked,
            prompt_format,
            source=source,
            limit=limit,
            docs=ids,
            output=Path(output) if output else None,
            store=store,
            confirm_run_unsafe_code=confirm_run_unsafe_code,
            on_progress=on_progress,
        )
    paired = leaderboard.corrected(rows([each.run for each in found]))
    return EvaluationResult(table.to_frame(paired), found)


def forecast_evaluation(
    model: str | Path,
    tasks: str | Sequence[str],
    boosters: Boosters = (),
    *,
    limit: int | None = None,
    docs: Slice | str | None = None,
    prompt_format: PromptFormat | None = None,
    include_path: Sequence[str | Path] = (),
    confirm_run_unsafe_code: bool = False,
    model_args: Mapping[str, Any] | None = None,
) -> Forecast:
    """Estimates the memory and the time that `evaluate` will take on this machine, without loading the model.

    The very requests are laid out, and some of them are answered by models with two and four layers of the same kind
    and width, and random weights. Texts to generate count as the longest that they may be.

    Args:
        model: A hub id or a folder; its configuration and tokenizer are read.
        tasks: See `evaluate`; so are all further arguments.
        boosters: See `evaluate`.
        limit: See `evaluate`.
        docs: See `evaluate`.
        prompt_format: See `evaluate`.
        include_path: See `evaluate`.
        confirm_run_unsafe_code: See `evaluate`.
        model_args: See `evaluate`.

    Raises:
        AftError: The model, a booster or a task cannot be used; the message is one line.
    """
    if is_gguf(model):
        raise ModelError(f"{model}: what an evaluation of a GGUF file takes cannot be estimated")
    source = Tasks(include_path)
    source.check(names := task_names(tasks))
    return evaluation_forecast.forecast(
        Blueprint(str(model), {"batch_size": DEFAULT_BATCH_SIZE, **(model_args or {})}),
        distinct([BASELINE, *_variants(boosters)]),
        names,
        prompt_format,
        source=source,
        limit=_positive(limit),
        docs=_slice(docs),
        confirm_run_unsafe_code=confirm_run_unsafe_code,
    )


def transfer(
    plan: str | Path | Mapping[str, Any] | Plan,
    folder: str | Path,
    table: str | Path | None = None,
    *,
    models: Sequence[Mapping[str, Any]] = (),
    on: str | None = None,
    reports: transfer_study.Reports | None = None,
) -> pd.DataFrame:
    """Trains a booster on each of several tasks or mixtures, and evaluates every booster on every evaluation task.

    Args:
        plan: A YAML file, its content as a mapping, or a `Plan`.
        folder: Folder for finished work. After an interruption, the same call resumes from it. With `on` it may be any
            address that fsspec knows, such as `s3://bucket/folder`.
        table: The leaderboard's CSV file; None means `leaderboard.csv` in the folder.
        models: Arguments of `--model steered-hf` for each model, in place of the plan's models.
        on: Where cells run: `local:N` for N workers on this machine, `ray` for the Ray cluster that it belongs to,
            `ray://HOST` for another (docs/clusters.md). None means here, one after the other.
        reports: Callbacks for progress.

    Returns:
        The leaderboard.

    Raises:
        AftError: The plan cannot be run; the message is one line.
    """
    if isinstance(plan, Mapping):
        plan = Plan.of({**plan, **({"models": list(models)} if models else {})})
    elif not isinstance(plan, Plan):
        plan = Plan.read(Path(plan), models)
    if table is None and not is_local(folder):
        raise FileError(f"{folder}: a study that is kept there needs a table on this machine; pass table=")
    rows = Path(table) if table else Path(folder) / "leaderboard.csv"
    if on is not None:
        return cluster.transfer(plan, folder, rows, Place.parse(on), reports)
    if not is_local(folder):
        raise FileError(f"{folder}: only studies with on= can be kept there; on='local:1' runs on this machine")
    return transfer_study.run(plan, make_folder(Path(folder)), rows, reports)


def paired(lm: SteeredHFLM, variants: Sequence[Variant], tasks: Mapping[str, Any]) -> pd.DataFrame:
    """The paired results of variants on task objects."""
    source = Tasks()
    for name, task in tasks.items():
        source.add(name, task)
    found = evaluation.evaluate(lm, variants, list(tasks), source=source)
    return table.to_frame(leaderboard.corrected(rows([each.run for each in found])))


@contextmanager
def _kept(path: str | Path | None) -> Iterator[ScoreStore | None]:
    if path is None:
        yield None
        return
    with ScoreStore(Path(path)) as store:
        yield store


def _positive(limit: int | None) -> int | None:
    if limit is not None and limit < 1:  # of which lm-eval takes 0 for all
        raise ParseError(f"a limit of {limit} leaves no documents to evaluate")
    return limit


def _slice(docs: Slice | str | None) -> Slice | None:
    return Slice.parse(docs) if isinstance(docs, str) else docs


def _variants(boosters: Boosters) -> list[Variant]:
    """Boosters as variants under the names that they were given."""
    if isinstance(boosters, Mapping):
        named: Mapping[Any, Any] = boosters
        return [replace(references.load(spec), name=str(name)) for name, spec in named.items()]
    listed: list[Any] = list(boosters) if isinstance(boosters, list | tuple) else [boosters]
    return [spec if isinstance(spec, Variant) else references.load(spec) for spec in listed]
