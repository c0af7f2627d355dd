"""Options that several commands share, each kind collected into one argument, and how their values are read."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from aft_harness.errors import ModelError, TaskError, TrainingError
from aft_harness.training.recipe import (
    RECIPES,
    TRAINING_DOCUMENTS,
    ChoiceNorm,
    Kind,
    Objective,
    RateUnit,
    Schedule,
    Settings,
)

if TYPE_CHECKING:
    from aft_harness.harness.examples import Prompting, TaskExamples, TaskSelection
    from aft_harness.harness.model import SteeredHFLM

_Command = Callable[..., Any]


def _collected(argument: str, options: Mapping[str, Callable[[_Command], _Command]]) -> Callable[[_Command], _Command]:
    """Gives a command options whose values arrive together, as a dictionary in one argument."""

    def decorate(command: _Command) -> _Command:
        @functools.wraps(command)
        def run(**values: Any) -> Any:
            return command(**{argument: {name: values.pop(name) for name in options}}, **values)

        decorated: _Command = run
        for option in reversed(list(options.values())):
            decorated = option(decorated)
        return decorated

    return decorate


model_options = _collected(
    "model",
    {
        "model": click.option("--model", required=True, help="Hub id or folder of a causal language model."),
        "model_args": click.option(
            "--model-args", default="", metavar="K=V,...", help="Further model arguments, as for lm_eval."
        ),
        "trust_remote_code": click.option("--trust-remote-code", is_flag=True, help="Run model code from the hub."),
        "revision": click.option(
            "--revision", default="main", show_default=True, help="Branch, tag or commit on the hub."
        ),
        "dtype": click.option(
            "--dtype", default="auto", show_default=True, help="float32, bfloat16, float16; auto = checkpoint."
        ),
        "device": click.option("--device", help="cpu, cuda, cuda:1, mps.  [default: a GPU if there is one]"),
    },
)
"""Which model, worded as lm-eval words it; for `load_model`."""

prompt_options = _collected(
    "prompting",
    {
        "include_path": click.option(
            "--include-path", multiple=True, metavar="FOLDER", help="Folder with further task YAMLs."
        ),
        "num_fewshot": click.option(
            "--num-fewshot", type=click.IntRange(min=0), help="Few-shot examples.  [default: the task's own]"
        ),
        "apply_chat_template": click.option(
            "--apply-chat-template", is_flag=True, help="Format prompts with the chat template."
        ),
        "system_instruction": click.option("--system-instruction", help="System message in front of every prompt."),
        "fewshot_as_multiturn": click.option(
            "--fewshot-as-multiturn/--no-fewshot-as-multiturn", default=None, help="Shots as chat turns."
        ),
    },
)
"""How prompts are formatted, worded as lm-eval words it: the fields of `examples.Prompting`."""

_TASKS = click.option("--tasks", required=True, metavar="T,...", help="lm-eval tasks to learn from.")
_TRAIN_DOCS = click.option(
    "--train-docs", multiple=True, metavar="[T=]SPLIT[a:b]", help="Rows to draw from.  [default: training split]"
)
_LIMIT = click.option(
    "--limit", multiple=True, metavar="[T=]N|all", help=f"Training documents per task.  [default: {TRAINING_DOCUMENTS}]"
)
_DEV_DOCS = click.option(
    "--dev-docs", multiple=True, metavar="[T=]N", help="Development documents per task, which choices are made by."
)
_WEIGHT = click.option("--weight", multiple=True, metavar="T=W", help="Weight of a task in a mixture.  [default: 1]")
_SPLIT_SEED = click.option(
    "--split-seed", type=int, default=0, show_default=True, help="Which documents train and which develop."
)

drawing_options = _collected(
    "drawing",
    {
        "tasks": _TASKS,
        "train_docs": _TRAIN_DOCS,
        "limit": _LIMIT,
        "dev_docs": _DEV_DOCS,
        "weight": _WEIGHT,
        "split_seed": _SPLIT_SEED,
    },
)
"""Which documents to learn from; for `drawn`."""

development_options = _collected(
    "drawing",
    {"tasks": _TASKS, "train_docs": _TRAIN_DOCS, "dev_docs": _DEV_DOCS, "split_seed": _SPLIT_SEED},
)
"""Which documents to choose by; for `drawn`."""


def _default(name: str) -> str:
    return f"  [default: {getattr(RECIPES['default'], name)}]"


def _one_of(kind: Any) -> click.Choice[str]:
    return click.Choice(list(get_args(kind)))


training_options = _collected(
    "hyperparameters",
    {
        "recipe": click.option(
            "--recipe",
            type=click.Choice(list(RECIPES)),
            default="default",
            show_default=True,
            help="Settings that the other options change; original = as first published.",
        ),
        "kind": click.option(
            "--kind", type=_one_of(Kind), help=f"A vector, or a small MLP of the hidden state.{_default('kind')}"
        ),
        "rank": click.option("--rank", type=click.IntRange(min=1), help=f"Width of that MLP.{_default('rank')}"),
        "objective": click.option(
            "--objective",
            type=_one_of(Objective),
            help="Loss on the answer's tokens, on ranking choices, or both.  [default: both where there are choices]",
        ),
        "choice_norm": click.option(
            "--choice-norm",
            type=_one_of(ChoiceNorm),
            help="Divide a choice's loglikelihood by its length; characters = acc_norm." + _default("choice_norm"),
        ),
        "temperature": click.option(
            "--temperature",
            type=click.FloatRange(min=0, min_open=True),
            help="Divide loglikelihoods by it before the softmax over choices.  [default: measured]",
        ),
        "epochs": click.option("--epochs", type=click.IntRange(min=1), help=f"Passes.{_default('epochs')}"),
        "lr": click.option(
            "--lr", type=click.FloatRange(min=0, min_open=True), help=f"Adam's learning rate.{_default('lr')}"
        ),
        "rate_unit": click.option(
            "--rate-unit",
            type=_one_of(RateUnit),
            help=f"residual = in sizes of the residual stream, shared by the layers.{_default('rate_unit')}",
        ),
        "schedule": click.option(
            "--schedule", type=_one_of(Schedule), help=f"linear = the rate falls to nothing.{_default('schedule')}"
        ),
        "batch_size": click.option(
            "--batch-size", type=click.IntRange(min=1), help=f"Documents per step.{_default('batch_size')}"
        ),
        "seed": click.option("--seed", type=int, default=0, show_default=True, help="Order of the training documents."),
    },
)
"""How to train; for `settings`."""

test_options = _collected(
    "testing",
    {
        "test_tasks": click.option(
            "--test-tasks", metavar="T,...", help="lm-eval tasks to report on.  [default: --tasks]"
        ),
        "test_limit": click.option("--test-limit", type=click.IntRange(min=1), help="Test documents per task."),
        "test_docs": click.option("--test-docs", metavar="A:B", help="Test documents by id, as a slice."),
    },
)
"""What a sweep reports on."""


def check_output(output: str) -> None:
    """Refuses a booster file that could not be written, before anything costs time.

    Raises:
        TrainingError: Another suffix, or no writable folder.
    """
    folder = os.path.dirname(output) or "."
    if not output.endswith(".safetensors"):
        raise TrainingError(f"--output {output}: a booster file ends in .safetensors")
    if os.path.isdir(output) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise TrainingError(f"--output {output}: {folder} is not a folder that can be written")


def check_writable(option: str, folder: Path) -> None:
    """Makes a folder that results go to, before anything costs time.

    Raises:
        TrainingError: It cannot be made, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{option} {folder}: cannot be made ({error.strerror})") from None
    if not os.access(folder, os.W_OK):
        raise TrainingError(f"{option} {folder}: cannot be written to")


def settings(hyperparameters: Mapping[str, Any], **others: Any) -> Settings:
    """The recipe that the values of `training_options` name, changed by those that are given and by `others`.

    Raises:
        TrainingError: Values that cannot train.
    """
    given = {name: value for name, value in {**hyperparameters, **others}.items() if value is not None}
    return replace(RECIPES[given.pop("recipe")], **given)


def task_names(tasks: str) -> list[str]:
    """The names of a list separated by commas.

    Raises:
        TaskError: There is none.
    """
    names = list(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    if not names:
        raise TaskError("--tasks is empty: name at least one lm-eval task")
    return names


def drawn(lm: SteeredHFLM, loaded: Any, prompting: Prompting, split_seed: int) -> list[TaskExamples]:
    """Training and development examples of the tasks that `examples.load_tasks` loaded, and says on stderr how many."""
    from aft_harness.cli.terminal import said
    from aft_harness.harness.examples import task_examples

    found = [task_examples(selection, task, prompting, lm, split_seed) for selection, task in loaded]
    for task in found:
        click.echo(said(task), err=True)
    return found


def selections(
    *,
    tasks: str,
    train_docs: Sequence[str] = (),
    limit: Sequence[str] = (),
    dev_docs: Sequence[str] = (),
    weight: Sequence[str] = (),
    split_seed: int = 0,
    development_only: bool = False,
) -> list[TaskSelection]:
    """What the values of `drawing_options` select.

    Raises:
        TaskError: A value that cannot be read, or of a task that is not named.
    """
    from aft_harness.harness.examples import TaskSelection

    names = task_names(tasks)
    limits = _per_task("--limit", limit, names, lambda text: None if text == "all" else _count(text))
    weights = _per_task("--weight", weight, names, _positive)
    rows = _per_task("--train-docs", train_docs, names, str)
    development = _per_task("--dev-docs", dev_docs, names, _count)
    return [
        TaskSelection(
            name,
            limits.get(name, TRAINING_DOCUMENTS),
            weights.get(name, 1.0),
            rows.get(name),
            development.get(name, 0),
            development_only,
        )
        for name in names
    ]


def load_model(
    *,
    model: str,
    model_args: str,
    revision: str,
    dtype: str,
    device: str | None,
    trust_remote_code: bool,
    batch_size: int | str = 16,
) -> SteeredHFLM:
    """Loads what the values of `model_options` name.

    Raises:
        ModelError: It cannot be loaded.
    """
    from lm_eval.utils import simple_parse_args_string

    from aft_harness.harness.model import SteeredHFLM

    if wrong := [part for part in model_args.split(",") if part and "=" not in part]:
        raise ModelError(f"--model-args {wrong[0]}: expected key=value, separated by commas")
    arguments: dict[str, Any] = {
        "pretrained": model,
        "revision": revision,
        "dtype": dtype,
        "batch_size": batch_size,
        "trust_remote_code": trust_remote_code,
        **simple_parse_args_string(model_args),
    }
    if device:
        arguments["device"] = device
    return SteeredHFLM(**arguments)


def _per_task(option: str, values: Sequence[str], names: Sequence[str], read: Callable[[str], Any]) -> dict[str, Any]:
    """Values by task from `V` (every task) and `task=V`, of which the latter wins."""
    common: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for value in values:
        name, equals, text = value.rpartition("=")
        if equals and name not in names:
            raise TaskError(f"{option} {value}: {name!r} is not among --tasks")
        try:
            parsed = read(text)
        except ValueError as error:
            raise TaskError(f"{option} {value}: {error}") from None
        if equals:
            own[name] = parsed
        else:
            common = dict.fromkeys(names, parsed)
    return {**common, **own}


def _count(text: str) -> int:
    if not text.isdigit():
        raise ValueError("expected a number of documents")
    return int(text)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError("expected a positive number")
    return value
