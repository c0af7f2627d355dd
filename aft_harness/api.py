"""The front door: what a notebook or a program calls, with the names, defaults and errors of the command line.

Every function takes a hub id, a folder, or a model and tokenizer that are already loaded, which are left as they were.
The commands are thin over these functions. `import aft_harness` offers all of them without loading torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from aft_harness.boosters import references
from aft_harness.boosters.booster import Booster
from aft_harness.boosters.variant import BASELINE, Variant, distinct
from aft_harness.errors import FileError, ModelError, ParseError, TaskError, TrainingError
from aft_harness.files import make_folder
from aft_harness.harness import evaluation
from aft_harness.harness.evaluation import VariantResults
from aft_harness.harness.examples import Judging, TaskExamples, examples_of
from aft_harness.harness.judge import Judge, imported
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.opening import Model, opened, opened_for_evaluation
from aft_harness.harness.pair_examples import draw_pairs, evaluated_pairs
from aft_harness.harness.pair_sources import Pairs, read_all, refuse_same_names
from aft_harness.harness.score_store import ScoreStore
from aft_harness.harness.selection import TRAINING_DOCUMENTS, PromptFormat, TaskSelection, task_names
from aft_harness.harness.tasks import Tasks
from aft_harness.progress import OnProgress, OnTraining, TrainingProgress, ignore
from aft_harness.results import leaderboard, table
from aft_harness.results.runs import rows
from aft_harness.slices import Slice
from aft_harness.studies import cluster, sweep
from aft_harness.studies import transfer as transfer_study
from aft_harness.studies.plan import Plan
from aft_harness.studies.storage import is_local
from aft_harness.studies.workers import Place
from aft_harness.training import train as training
from aft_harness.training.recipe import RECIPES, Settings
from aft_harness.training.result import TrainingResult

TasksLike = str | Sequence[str | TaskSelection]
"""Tasks to train on: one name, several names separated by commas, or a list of names and selections."""

Boosters = references.VectorSpec | Mapping[str, Any] | Sequence[Any]
"""Boosters to evaluate: anything that `vector=` accepts, a list of these, or a mapping from names to these."""


def train(
    model: Model,
    tokenizer: Any = None,
    tasks: TasksLike = (),
    *,
    pairs: Pairs = (),
    recipe: str = "default",
    limit: int | None = TRAINING_DOCUMENTS,
    dev_docs: int = 0,
    prompt_format: PromptFormat | None = None,
    include_path: Sequence[str | Path] = (),
    start: Any = None,
    keep_texts: Sequence[str] | None = None,
    licence: str | None = None,
    cache_limit: int = training.CACHE_LIMIT,
    memory: int | None = None,
    resume: str | Path | None = None,
    model_args: Mapping[str, Any] | None = None,
    on_examples: Callable[[TaskExamples], None] = ignore,
    on_progress: Callable[[TrainingProgress, str], None] = ignore,
    **settings: Any,
) -> TrainingResult:
    """Trains a booster: freezes the model and learns vectors that make the correct answers more likely.

    Args:
        model: A hub id, a folder, or a loaded model.
        tokenizer: Tokenizer of a loaded model.
        tasks: lm-eval tasks to train on.
        pairs: Pairs of texts to train on: mappings with `prompt`, `chosen` and `rejected`, or `prompt` and
            `completion`, as text or chat messages; or files or data sets of the hub with such rows. A fifth of them, at
            most 200, is held out, and `held_out` of the result says what became of these.
        recipe: Base settings, which `**settings` override: `default`, or `original`, Activation Fine-Tuning as first
            published.
        limit: Maximum number of training documents for each task or source of pairs given by name only; None means all.
        dev_docs: Number of development documents for each of these, used to choose the best epoch.
        prompt_format: How prompts are formatted.
        include_path: Folders with additional task YAML files.
        start: Booster to start from, in the syntax of `vector=`.
        keep_texts: Plain texts on which the model stays close to itself, with the weight `keep`; None takes samples of
            the unchanged model.
        licence: Licence to record in the booster.
        cache_limit: Bytes of cached hidden states kept in memory; the rest goes to a temporary file.
        memory: Bytes that training may take, the model included; None is half of what is free.
        resume: File for the state of the training. After an interruption, the same call resumes from it, and ends
            exactly as if nothing had happened; the file is removed at the end.
        model_args: See `opened`.
        on_examples: Called with the examples of each task before training starts.
        on_progress: Called after each optimiser step with the progress and, of several trainings, which one it is.
        **settings: Fields of `Settings`, such as `layers`, `lr`, `epochs` or `seed`. `layers="auto"` tries several
            layers and keeps the best one on development documents.

    Raises:
        AftError: The model, a task or a setting cannot be used; the message is one line.

    Example:
        >>> result = train("HuggingFaceTB/SmolLM2-135M-Instruct", tasks="arc_easy")  # doctest: +SKIP
        >>> result.booster.save("arc.safetensors")  # doctest: +SKIP
    """
    automatic = settings.get("layers") == "auto"
    how = _settings(recipe, {name: value for name, value in settings.items() if not (automatic and name == "layers")})
    if automatic and start is not None:
        raise TrainingError("layers auto and a booster to start from cannot be used together")
    if automatic and keep_texts is not None:
        raise TrainingError("layers auto and texts to keep cannot be used together")
    if how.on_own_texts:
        for given, what in ((automatic, "layers auto"), (pairs, "pairs of texts")):
            if given:
                raise TrainingError(f"objective {how.objective} and {what} cannot be used together")
        if how.reward is not None and ":" in how.reward:
            imported(how.reward)
    judging = Judging(how.reward) if how.on_own_texts else None
    begun = Booster.load(start) if start is not None else None
    source = Tasks(include_path)
    chosen = read_all(pairs, limit, dev_docs)
    selected = source.select(_selections(tasks, limit, dev_docs)) if tasks or not chosen else []
    refuse_same_names([*(selection.name for selection, _ in selected), *(given.name for _, given in chosen)])
    if judging is not None:  # before the model, which may take long to load
        for asked, task in selected:
            Judge(task, asked.name, judging.reward)
    with opened(model, tokenizer, **(model_args or {})) as lm:
        drawn = [
            examples_of(selection, task, lm, prompt_format, how.split_seed, judging) for selection, task in selected
        ]
        held_out = {}
        for selection, given in chosen:
            found = draw_pairs(given, selection, lm, prompt_format, how.split_seed)
            drawn.append(found.examples)
            if found.held_out is not None:
                held_out[given.name] = found.held_out
        for examples in drawn:
            on_examples(examples)
        state = Path(resume) if resume else None
        options: dict[str, Any] = {"licence": licence, "cache_limit": cache_limit, "memory": memory, "resume": state}
        if not automatic:
            report: OnTraining = lambda progress: on_progress(progress, "")  # noqa: E731
            options |= {"start": begun, "keep_texts": keep_texts}
            result = training.train(lm, drawn, how, on_progress=report, **options)
        else:
            candidates = sweep.automatic_layers(len(lm.engine.layers))

            def report_layer(done: int, total: int, progress: TrainingProgress) -> None:
                on_progress(progress, f"layer {candidates[done]}, {done + 1} of {total}")

            result, _ = sweep.best_layer(lm, drawn, how, candidates, on_training=report_layer, **options)
        if state is not None:
            state.unlink(missing_ok=True)
        if not held_out:
            return result
        return replace(result, held_out=_paired(lm, [BASELINE, Variant("booster", result.booster)], held_out))


def _paired(lm: SteeredHFLM, variants: Sequence[Variant], tasks: Mapping[str, Any]) -> pd.DataFrame:
    """The paired results of variants on task objects."""
    source = Tasks()
    for name, task in tasks.items():
        source.add(name, task)
    found = evaluation.evaluate(lm, variants, list(tasks), source=source)
    return table.to_frame(leaderboard.corrected(rows([each.run for each in found])))


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
    ids = Slice.parse(docs) if isinstance(docs, str) else docs
    if limit is not None and limit < 1:  # of which lm-eval takes 0 for all
        raise ParseError(f"a limit of {limit} leaves no documents to evaluate")
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
        raise TaskError("no tasks given")
    return [TaskSelection(item, limit=limit, dev_docs=dev_docs) if isinstance(item, str) else item for item in listed]


def _settings(recipe: str, changes: Mapping[str, Any]) -> Settings:
    if recipe not in RECIPES:
        raise TrainingError(f"unknown recipe {recipe!r}; expected one of {', '.join(RECIPES)}")
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
