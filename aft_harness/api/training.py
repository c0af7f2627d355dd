"""Training, and what it will take: the commands `aft train` and its `--dry-run` are thin over these functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from aft_harness.api.evaluation import paired
from aft_harness.boosters.booster import Booster
from aft_harness.boosters.variant import BASELINE, Variant
from aft_harness.engine.memory import release
from aft_harness.errors import TrainingError
from aft_harness.harness.blueprint import Blueprint, Forecast
from aft_harness.harness.examples import Judging, TaskExamples
from aft_harness.harness.judge import imported
from aft_harness.harness.mixture import Mixture, TasksLike
from aft_harness.harness.opening import Model, opened
from aft_harness.harness.pair_sources import Pairs
from aft_harness.harness.selection import TRAINING_DOCUMENTS, PromptFormat
from aft_harness.progress import OnTraining, TrainingProgress, ignore
from aft_harness.studies import sweep
from aft_harness.training import train as training
from aft_harness.training.forecast import forecast as estimated
from aft_harness.training.recipe import RECIPES, Settings
from aft_harness.training.result import TrainingResult


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
    on_result: Callable[[TrainingResult], None] = ignore,
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
            exactly as if nothing had happened; the file is removed at the end, once `on_result` has returned.
        model_args: See `opened`.
        on_examples: Called with the examples of each task before training starts.
        on_progress: Called after each optimiser step with the progress and, of several trainings, which one it is.
        on_result: Called with the result, to save it: should that fail, the same call resumes from the end of training.
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
    begun = Booster.load(start) if start is not None else None
    mixture = _mixture(tasks, pairs, how, limit, dev_docs, prompt_format, include_path)
    with opened(model, tokenizer, **(model_args or {})) as lm:
        drawn, held_out = mixture.draw(lm)
        for examples in drawn:
            on_examples(examples)
        state = Path(resume) if resume else None
        states = [state]
        options: dict[str, Any] = {"licence": licence, "cache_limit": cache_limit, "memory": memory, "resume": state}
        if not automatic:
            report: OnTraining = lambda progress: on_progress(progress, "")  # noqa: E731
            options |= {"start": begun, "keep_texts": keep_texts}
            options["disposable"] = _is_disposable(model, pairs)
            result = training.train(lm, drawn, how, on_progress=report, **options)
        else:
            candidates = sweep.automatic_layers(len(lm.engine.layers))
            states = [sweep.state_of(state, layer) for layer in candidates]

            def report_layer(done: int, total: int, progress: TrainingProgress) -> None:
                on_progress(progress, f"layer {candidates[done]}, {done + 1} of {total}")

            result, _ = sweep.best_layer(lm, drawn, how, candidates, on_training=report_layer, **options)
        release()  # a notebook or a program goes on with other things
        if held_out:
            compared = paired(lm, [BASELINE, Variant("booster", result.booster)], held_out)
            result = replace(result, held_out=compared)
        on_result(result)
        if not lm.processes.rank:
            for each in filter(None, states):
                each.unlink(missing_ok=True)
        return result


def forecast(
    model: str | Path,
    tasks: TasksLike = (),
    *,
    pairs: Pairs = (),
    recipe: str = "default",
    limit: int | None = TRAINING_DOCUMENTS,
    dev_docs: int = 0,
    prompt_format: PromptFormat | None = None,
    include_path: Sequence[str | Path] = (),
    keep_texts: Sequence[str] | None = None,
    cache_limit: int = training.CACHE_LIMIT,
    memory: int | None = None,
    model_args: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Forecast:
    """Estimates the memory and the time that `train` will take on this machine, without loading the model.

    Short trainings of models with two and four layers of the same kind and width, and random weights, are measured.

    Args:
        model: A hub id or a folder; its configuration and tokenizer are read.
        tasks: See `train`; so are all further arguments.
        pairs: See `train`.
        recipe: See `train`.
        limit: See `train`.
        dev_docs: See `train`.
        prompt_format: See `train`.
        include_path: See `train`.
        keep_texts: See `train`.
        cache_limit: See `train`.
        memory: See `train`.
        model_args: See `train`.
        **settings: See `train`.

    Raises:
        AftError: The model, a task or a setting cannot be used; the message is one line.
    """
    automatic = settings.get("layers") == "auto"
    how = _settings(recipe, {**settings, **({"layers": "middle"} if automatic else {})})
    mixture = _mixture(tasks, pairs, how, limit, dev_docs, prompt_format, include_path)
    blueprint = Blueprint(str(model), model_args or {})
    found = estimated(
        blueprint,
        lambda lm: mixture.draw(lm).examples,
        how,
        cache_limit=cache_limit,
        memory=memory,
        keep_texts=keep_texts,
        disposable=_is_disposable(model, pairs) and not automatic,
    )
    return found.repeated(len(sweep.automatic_layers(blueprint.layers))) if automatic else found


def _is_disposable(model: Model, pairs: Pairs) -> bool:
    """Whether nobody needs the model after training: it was loaded for that, and no pairs are held out."""
    return not isinstance(model, nn.Module) and not pairs


def _mixture(
    tasks: TasksLike,
    pairs: Pairs,
    how: Settings,
    limit: int | None,
    dev_docs: int,
    prompt_format: PromptFormat | None,
    include_path: Sequence[str | Path],
) -> Mixture:
    return Mixture(
        tasks,
        pairs,
        limit=limit,
        dev_docs=dev_docs,
        prompt_format=prompt_format,
        include_path=include_path,
        split_seed=how.split_seed,
        judging=Judging(how.reward) if how.on_own_texts else None,
    )


def _settings(recipe: str, changes: Mapping[str, Any]) -> Settings:
    if recipe not in RECIPES:
        raise TrainingError(f"unknown recipe {recipe!r}; expected one of {', '.join(RECIPES)}")
    try:
        return replace(RECIPES[recipe], **changes)
    except TypeError as error:
        raise TrainingError(f"unknown setting: {error}") from None
