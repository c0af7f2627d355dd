"""Options that several commands share, each kind collected into one argument.

Knows the words of the command line; what the values mean is the library's business.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, get_args

import click

from aft_harness.boosters.layers import Layers
from aft_harness.boosters.vocabulary import Kind
from aft_harness.cli.app import option
from aft_harness.cli.values import PLACE, SLICE, Number
from aft_harness.harness.selection import PromptFormat
from aft_harness.training.recipe import PAIR_OBJECTIVE, RECIPES, ChoiceNorm, Objective, RateUnit, Schedule, Settings

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from aft_harness.harness.model import SteeredHFLM
    from aft_harness.harness.shared_pass import SteeredLM

_Command = Callable[..., Any]


def collected(argument: str, options: Mapping[str, Callable[[_Command], _Command]]) -> Callable[[_Command], _Command]:
    """Gives a command options whose values arrive together, as a dictionary in one argument."""

    def decorate(command: _Command) -> _Command:
        @functools.wraps(command)
        def run(**values: Any) -> Any:
            return command(**{argument: {name: values.pop(name) for name in options}}, **values)

        decorated: _Command = run
        for add in reversed(list(options.values())):
            decorated = add(decorated)
        return decorated

    return decorate


MODEL: dict[str, Callable[[_Command], _Command]] = {
    "model": click.option("--model", required=True, help="Hub id or folder of a causal language model."),
    "model_args": click.option(
        "--model-args", default="", metavar="K=V,...", help="Additional model arguments, as for lm_eval."
    ),
    "trust_remote_code": click.option(
        "--trust-remote-code", is_flag=True, help="Allow model code from the hub to run."
    ),
    "revision": click.option("--revision", default="main", show_default=True, help="Branch, tag or commit on the hub."),
    "dtype": click.option(
        "--dtype",
        default="auto",
        show_default=True,
        help="float32, bfloat16, float16; auto = as in the checkpoint.",
    ),
    "device": click.option("--device", help="cpu, cuda, cuda:1, mps.  [default: a GPU if there is one]"),
}

model_options = collected("model", MODEL)
"""Which model, worded as lm-eval words it; for `opened_model` and `model_arguments`."""

fitting_model_options = collected(
    "model", {**MODEL, "model": click.option("--model", help="Hub id or folder of the model, for --fit.")}
)
"""Which model, where one is needed for `--fit` only."""

prompt_options = collected(
    "prompting",
    {
        "include_path": click.option(
            "--include-path", multiple=True, metavar="FOLDER", help="Folder with additional task YAML files."
        ),
        "num_fewshot": click.option(
            "--num-fewshot", type=click.IntRange(min=0), help="Number of few-shot examples.  [default: the task's own]"
        ),
        "apply_chat_template": click.option(
            "--apply-chat-template", is_flag=True, help="Format prompts with the chat template."
        ),
        "system_instruction": click.option("--system-instruction", help="System message to put before every prompt."),
        "fewshot_as_multiturn": click.option(
            "--fewshot-as-multiturn/--no-fewshot-as-multiturn",
            default=None,
            help="Format few-shot examples as chat turns.",
        ),
    },
)
"""How prompts are formatted and where tasks are found, worded as lm-eval words it; for `prompt_format`."""


def _default(name: str) -> str:
    return f"  [default: {getattr(RECIPES['default'], name)}]"


def _choice(kind: Any) -> click.Choice[str]:
    return click.Choice(list(get_args(kind)))


training_options = collected(
    "hyperparameters",
    {
        "recipe": click.option(
            "--recipe",
            type=click.Choice(list(RECIPES)),
            default="default",
            show_default=True,
            help="Base settings, which other options override; original = as first published.",
        ),
        "kind": click.option(
            "--kind",
            type=_choice(Kind),
            help=f"A vector (static) or a small MLP of the hidden state (contextual).{_default('kind')}",
        ),
        "rank": click.option("--rank", type=click.IntRange(min=1), help=f"Width of the MLP.{_default('rank')}"),
        "objective": click.option(
            "--objective",
            type=_choice(Objective),
            help="Loss on the answer's tokens, on ranking the choices, both, or for pairs a bidirectional preference "
            "loss; rejection and reward learn from texts that the model writes itself, judged by the task's metric."
            f"  [default: both if there are choices, {PAIR_OBJECTIVE} for pairs with a rejected text]",
        ),
        "choice_norm": click.option(
            "--choice-norm",
            type=_choice(ChoiceNorm),
            help="Divide a choice's loglikelihood by its length; characters = as for acc_norm."
            + _default("choice_norm"),
        ),
        "temperature": click.option(
            "--temperature",
            type=Number(min=0, min_open=True),
            help="Temperature of the softmax over the choices; of preference, 1 / beta; of rejection, of sampling.  "
            "[default: measured; 10; 1]",
        ),
        "epochs": click.option(
            "--epochs",
            type=click.IntRange(min=1),
            help=f"Passes over the training documents; rejection and reward sample anew in each.{_default('epochs')}",
        ),
        "samples": click.option(
            "--samples",
            type=click.IntRange(min=2),
            help=f"Texts per document, for rejection and reward.{_default('samples')}",
        ),
        "reward": click.option(
            "--reward",
            metavar="METRIC[,FILTER]|MODULE:FUNCTION",
            help="What a text is worth, for rejection and reward: a metric of the task, or a function of document and "
            "text.  [default: the task's first metric and filter]",
        ),
        "kl": click.option(
            "--kl",
            type=Number(min=0),
            metavar="WEIGHT",
            help="Weight of staying close to the unchanged model on sampled texts, for reward." + _default("kl"),
        ),
        "lr": click.option("--lr", type=Number(min=0, min_open=True), help=f"Adam's learning rate.{_default('lr')}"),
        "rate_unit": click.option(
            "--rate-unit",
            type=_choice(RateUnit),
            help="residual = relative to the size of the residual stream, shared among the layers."
            + _default("rate_unit"),
        ),
        "schedule": click.option(
            "--schedule", type=_choice(Schedule), help=f"linear = linear decay to zero.{_default('schedule')}"
        ),
        "batch_size": click.option(
            "--batch-size", type=click.IntRange(min=1), help=f"Documents per optimiser step.{_default('batch_size')}"
        ),
        "keep": click.option(
            "--keep",
            type=Number(min=0),
            metavar="WEIGHT",
            help="Weight of staying close to the unchanged model on plain text." + _default("keep"),
        ),
        "seed": click.option("--seed", type=int, default=0, show_default=True, help="Seed of the training order."),
    },
)
"""How to train; for `settings`."""

test_options = collected(
    "testing",
    {
        "test_tasks": click.option(
            "--test-tasks", metavar="T,...", help="lm-eval tasks to report on.  [default: --tasks]"
        ),
        "test_limit": click.option("--test-limit", type=click.IntRange(min=1), help="Test documents per task."),
        "test_docs": click.option("--test-docs", type=SLICE, metavar="A:B", help="Test documents, as a slice of ids."),
    },
)
"""What a sweep reports on."""


place_option = click.option(
    "--on",
    "place",
    type=PLACE,
    metavar="ray|ray://HOST|local:N",
    help="Run on the workers of a Ray cluster, or on N workers here (docs/clusters.md).  [default: in this process]",
)
"""Where the cells of a study run."""

format_option = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "csv", "md"]),
    default="table",
    show_default=True,
    help="Output format.",
)


def settings(hyperparameters: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    """The recipe and the fields of `Settings` that are given."""
    return {name: value for name, value in {**hyperparameters, **others}.items() if value is not None}


def recipe_settings(hyperparameters: Mapping[str, Any], **others: Any) -> Settings:
    """The settings of the recipe that is named, changed by what is given."""
    from dataclasses import replace

    given = settings(hyperparameters, **others)
    return replace(RECIPES[given.pop("recipe")], **given)


def prompt_format(prompting: Mapping[str, Any]) -> PromptFormat:
    """The values of `prompt_options` but for the folders of tasks."""
    return PromptFormat(**{name: value for name, value in prompting.items() if name != "include_path"})


def check_model(values: Mapping[str, Any], layers: Layers | str | int | None = None) -> None:
    """Refuses a model that cannot be loaded, and layers that it does not have, before anything costs time.

    Args:
        values: Of `model_options`.
        layers: Which layers; None and `auto` fit every model.

    Raises:
        AftError: One line says what is wrong.
    """
    from aft_harness.harness import preflight

    name, arguments = model_arguments(values)
    shape = preflight.check(name, arguments)
    if shape is not None and "layers_path" not in arguments and layers not in (None, "auto"):
        Layers.of(layers).resolve(shape.layers)


def model_arguments(values: Mapping[str, Any], batch_size: int | str = 16) -> tuple[str, dict[str, Any]]:
    """The model that the values of `model_options` name, and its further arguments.

    Raises:
        click.BadParameter: `--model-args` cannot be read.
    """
    from aft_harness.harness.loading import parse_arguments

    with option("--model-args"):
        further = parse_arguments(values["model_args"])
    arguments: dict[str, Any] = {
        "revision": values["revision"],
        "dtype": values["dtype"],
        "batch_size": batch_size,
        "trust_remote_code": values["trust_remote_code"],
        **further,
    }
    if values["device"]:
        arguments["device"] = values["device"]
    return values["model"], arguments


def opened_for_evaluation(values: Mapping[str, Any], batch_size: int | str = 16) -> AbstractContextManager[SteeredLM]:
    """Loads the model, which may be a GGUF file, see `opening.opened_for_evaluation`."""
    from aft_harness.harness.opening import opened_for_evaluation

    model, arguments = model_arguments(values, batch_size)
    return opened_for_evaluation(model, **arguments)


def opened_model(values: Mapping[str, Any], batch_size: int | str = 16) -> AbstractContextManager[SteeredHFLM]:
    """Loads the model, see `opening.opened`."""
    from aft_harness.harness.opening import opened

    model, arguments = model_arguments(values, batch_size)
    return opened(model, **arguments)
