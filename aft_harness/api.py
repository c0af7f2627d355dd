"""The front door: what a notebook or a program calls, with the names, defaults and errors of the command line.

Every function takes a hub id, a folder, or a model and tokenizer that are already loaded, which are left as they were.
The commands are thin over these functions. `import aft_harness` offers all of them without loading torch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from aft_harness.boosters import references
from aft_harness.boosters.booster import Booster
from aft_harness.boosters.variant import BASELINE, Variant, distinct
from aft_harness.engine.decoder import input_device
from aft_harness.errors import ModelError, ParseError, TaskError, TrainingError
from aft_harness.files import make_folder
from aft_harness.harness import evaluation
from aft_harness.harness.evaluation import VariantResults
from aft_harness.harness.examples import TaskExamples, examples_of
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.score_store import ScoreStore
from aft_harness.harness.selection import TRAINING_DOCUMENTS, PromptFormat, TaskSelection, task_names
from aft_harness.harness.tasks import Tasks
from aft_harness.progress import OnProgress, OnTraining, TrainingProgress, ignore
from aft_harness.results import leaderboard, table
from aft_harness.results.runs import rows
from aft_harness.slices import Slice
from aft_harness.studies import sweep
from aft_harness.studies import transfer as transfer_study
from aft_harness.studies.plan import Plan
from aft_harness.training import train as training
from aft_harness.training.recipe import RECIPES, Settings
from aft_harness.training.result import TrainingResult

Model = str | Path | nn.Module
"""A hub id, a folder, or a loaded model of transformers."""

TasksLike = str | Sequence[str | TaskSelection]
"""Tasks to learn from: one name, several separated by commas, or a list of names and selections."""

Boosters = references.VectorSpec | Mapping[str, Any] | Sequence[Any]
"""Boosters to evaluate: one of what `vector=` takes, a list of them, or a mapping from names to them."""


@contextmanager
def opened(
    model: Model, tokenizer: Any = None, *, dtype: str = "auto", batch_size: int | str = 16, **model_args: Any
) -> Iterator[SteeredHFLM]:
    """The model type that everything here runs on; a model that was loaded already is given back as it was.

    Args:
        model: A hub id, a folder, or a loaded model.
        tokenizer: Of a loaded model.
        dtype: Of the weights of a model that is loaded here; `auto` is the checkpoint's.
        batch_size: Rows a pass, or `auto`.
        **model_args: Further arguments of `--model steered-hf`, such as `device`, `revision`, `trust_remote_code`.

    Raises:
        ModelError: The model cannot be loaded or steered.
    """
    if not isinstance(model, nn.Module):
        yield SteeredHFLM(str(model), dtype=dtype, batch_size=batch_size, tokenizer=tokenizer, **model_args)
        return
    if tokenizer is None:
        raise ModelError(f"a loaded {type(model).__name__} needs its tokenizer too: pass tokenizer=")
    modes = [(module, module.training) for module in model.modules()]
    model_args.setdefault("device", str(input_device(model)))
    try:
        # The tokenizer's padding is changed for scoring: that of a copy.
        yield SteeredHFLM(model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size, **model_args)  # type: ignore[arg-type]
    finally:
        for module, training_mode in modes:
            module.training = training_mode


def train(
    model: Model,
    tokenizer: Any = None,
    tasks: TasksLike = (),
    *,
    recipe: str = "default",
    limit: int | None = TRAINING_DOCUMENTS,
    dev_docs: int = 0,
    prompt_format: PromptFormat | None = None,
    include_path: Sequence[str | Path] = (),
    start: Any = None,
    licence: str | None = None,
    cache_limit: int = training.CACHE_LIMIT,
    model_args: Mapping[str, Any] | None = None,
    on_examples: Callable[[TaskExamples], None] = ignore,
    on_progress: Callable[[TrainingProgress, str], None] = ignore,
    **settings: Any,
) -> TrainingResult:
    """Trains a booster: freezes the model and learns the vectors that make the tasks' right answers likelier.

    Args:
        model: A hub id, a folder, or a loaded model.
        tokenizer: Of a loaded model.
        tasks: lm-eval tasks to learn from.
        recipe: Settings that the others change: `default`, or `original`, as Activation Fine-Tuning was published.
        limit: Training documents of each task that is given by its name alone; None takes all.
        dev_docs: Development documents of each such task, by which the best epoch is kept.
        prompt_format: How prompts are formatted.
        include_path: Folders with further task YAMLs.
        start: A booster to start from, as `vector=` names it.
        licence: Licence to record in the booster.
        cache_limit: Bytes of cached hidden states kept in memory; the rest goes to a temporary file.
        model_args: See `opened`.
        on_examples: Called with the examples of each task before training starts.
        on_progress: Called after each optimiser step, with the progress and which of several trainings it is.
        **settings: Fields of `Settings`, such as `layers`, `lr`, `epochs`, `seed`. `layers="auto"` tries several layers
            and keeps the one that does best on development documents.

    Raises:
        AftError: One line says what is wrong with the model, a task or a setting.

    Example:
        >>> result = train("HuggingFaceTB/SmolLM2-135M-Instruct", tasks="arc_easy")  # doctest: +SKIP
        >>> result.booster.save("arc.safetensors")  # doctest: +SKIP
    """
    automatic = settings.get("layers") == "auto"
    how = _settings(recipe, {name: value for name, value in settings.items() if not (automatic and name == "layers")})
    if automatic and start is not None:
        raise TrainingError("a booster to start from has layers of its own: it cannot be used with layers auto")
    begun = Booster.load(start) if start is not None else None
    source = Tasks(include_path)
    selected = source.select(_selections(tasks, limit, dev_docs))
    with opened(model, tokenizer, **(model_args or {})) as lm:
        drawn = [examples_of(selection, task, lm, prompt_format, how.split_seed) for selection, task in selected]
        for examples in drawn:
            on_examples(examples)
        if not automatic:
            report: OnTraining = lambda progress: on_progress(progress, "")  # noqa: E731
            return training.train(
                lm, drawn, how, licence=licence, cache_limit=cache_limit, start=begun, on_progress=report
            )
        candidates = sweep.automatic_layers(len(lm.engine.layers))

        def report_layer(done: int, total: int, progress: TrainingProgress) -> None:
            on_progress(progress, f"layer {candidates[done]}, {done + 1} of {total}")

        result, _ = sweep.best_layer(
            lm, drawn, how, candidates, licence=licence, cache_limit=cache_limit, on_training=report_layer
        )
        return result


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found.

    Attributes:
        table: A row for each booster, task and metric, paired with the baseline: the columns of a leaderboard.
        variants: lm-eval's own results of the baseline and of each booster.
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
    """Evaluates boosters against one shared baseline, in one pass over the tasks.

    Args:
        model: A hub id, a folder, or a loaded model.
        tokenizer: Of a loaded model.
        tasks: lm-eval tasks or groups.
        boosters: What is evaluated: boosters, files and addresses at strengths as `vector=` takes them, or a mapping
            from names to these.
        limit: Documents per task; None takes all.
        docs: Documents by id instead, as a slice `a:b`.
        prompt_format: How prompts are formatted.
        include_path: Folders with further task YAMLs.
        output: Folder for lm-eval's own output files, one folder a variant.
        use_cache: File of results that are kept, and looked up before they are computed.
        confirm_run_unsafe_code: Allows tasks that run code which the model wrote.
        model_args: See `opened`.
        on_progress: Called with how many requests of a task are scored, and of how many.

    Raises:
        AftError: One line says what is wrong with the model, a booster or a task.
    """
    variants = distinct([BASELINE, *_variants(boosters)])
    source, names = Tasks(include_path), task_names(tasks)
    source.check(names)
    asked = Slice.parse(docs) if isinstance(docs, str) else docs
    if limit is not None and limit < 1:  # of which lm-eval takes 0 for all
        raise ParseError(f"a limit of {limit} leaves no documents to evaluate")
    with opened(model, tokenizer, **(model_args or {})) as lm, _kept(use_cache) as store:
        found = evaluation.evaluate(
            lm,
            variants,
            names,
            prompt_format,
            source=source,
            limit=limit,
            docs=asked,
            output=Path(output) if output else None,
            store=store,
            confirm_run_unsafe_code=confirm_run_unsafe_code,
            on_progress=on_progress,
        )
    paired = leaderboard.corrected(rows([each.run for each in found]))
    return EvaluationResult(table.to_frame(paired), found)


def transfer(
    plan: str | Path | Mapping[str, Any] | Plan,
    folder: str | Path,
    table: str | Path | None = None,
    *,
    models: Sequence[Mapping[str, Any]] = (),
    reports: transfer_study.Reports | None = None,
) -> pd.DataFrame:
    """Trains a booster on each of some tasks or mixtures, and evaluates all of them on each of others.

    Args:
        plan: A YAML file, its content, or a plan.
        folder: Where work is kept: killed at any moment, the same call resumes from what it holds.
        table: The leaderboard's CSV file; None means `leaderboard.csv` in the folder.
        models: Arguments of `--model steered-hf`, each, instead of the plan's models.
        reports: Whom to report to.

    Returns:
        The leaderboard.

    Raises:
        AftError: One line says what is wrong.
    """
    if isinstance(plan, Mapping):
        plan = Plan.of({**plan, **({"models": list(models)} if models else {})})
    elif not isinstance(plan, Plan):
        plan = Plan.read(Path(plan), models)
    place = make_folder(Path(folder))
    return transfer_study.run(plan, place, Path(table) if table else place / "leaderboard.csv", reports)


@contextmanager
def _kept(path: str | Path | None) -> Iterator[ScoreStore | None]:
    if path is None:
        yield None
        return
    with ScoreStore(Path(path)) as store:
        yield store


def _selections(tasks: TasksLike, limit: int | None, dev_docs: int) -> list[TaskSelection]:
    listed: Sequence[str | TaskSelection] = task_names(tasks) if isinstance(tasks, str) else tasks
    if not listed:
        raise TaskError("no task is named")
    return [TaskSelection(item, limit=limit, dev_docs=dev_docs) if isinstance(item, str) else item for item in listed]


def _settings(recipe: str, changes: Mapping[str, Any]) -> Settings:
    if recipe not in RECIPES:
        raise TrainingError(f"recipe {recipe!r} is not one of {', '.join(RECIPES)}")
    try:
        return replace(RECIPES[recipe], **changes)
    except TypeError as error:
        raise TrainingError(f"unknown setting: {error}") from None


def _variants(boosters: Boosters) -> list[Variant]:
    """Boosters as variants under the names that they were given."""
    if isinstance(boosters, Mapping):
        named: Mapping[Any, Any] = boosters
        return [replace(references.load(spec), name=str(name)) for name, spec in named.items()]
    listed: list[Any] = list(boosters) if isinstance(boosters, list | tuple) else [boosters]
    return [spec if isinstance(spec, Variant) else references.load(spec) for spec in listed]
