"""`aft train`, which is `aft-train`: boosters by gradient descent."""

from __future__ import annotations

from typing import Any, Literal

import click

from aft_harness.cli.app import CONTEXT, main
from aft_harness.cli.options import (
    check_output,
    drawing_options,
    drawn,
    load_model,
    model_options,
    prompt_options,
    selections,
    settings,
    training_options,
)
from aft_harness.cli.terminal import quiet, score, summary, training_bar
from aft_harness.errors import TrainingError


@main.command("train", context_settings=CONTEXT)
@model_options
@drawing_options
@prompt_options
@click.option(
    "--layer",
    "--layers",
    "layers",
    metavar="L,...",
    help="Decoder layers from 0; all; auto tries several on development documents.  [default: all]",
)
@training_options
@click.option(
    "--start",
    metavar="V.safetensors[:S]",
    help="Go on from this booster, as vector= of steered-hf names it.  [default: no change]",
)
@click.option(
    "--cache-limit",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    metavar="GIB",
    help="Memory for cached hidden states; the rest goes to a temporary file.",
)
@click.option("--licence", help="Licence to record in the booster.")
@click.option("--output", required=True, metavar="FILE.safetensors", help="The booster file to write.")
def train(
    *,
    model: dict[str, Any],
    drawing: dict[str, Any],
    prompting: dict[str, Any],
    layers: str | None,
    hyperparameters: dict[str, Any],
    start: str | None,
    cache_limit: float,
    licence: str | None,
    output: str,
) -> None:
    """Train a booster: freeze the model and learn the vector that makes the tasks' right answers likelier."""
    check_output(output)
    automatic = layers == "auto"
    indices = None if automatic else _layers(layers)
    if automatic and start:
        raise TrainingError("--start has layers of its own: it cannot be used with --layer auto")
    with quiet():
        from aft_harness.boosters import references
        from aft_harness.harness import examples
        from aft_harness.studies import sweep
        from aft_harness.training import train as training

        chosen = selections(**drawing)
        how = settings(hyperparameters, layers=indices, split_seed=drawing["split_seed"])
        formatted = examples.Prompting(**prompting)
        booster = None
        if start:
            booster, strength = references.load(start)
            booster = booster.scaled(strength)
        loaded = examples.load_tasks(chosen, formatted.include_path)
        lm = load_model(**model)
        tasks = drawn(lm, loaded, formatted, how.split_seed)
        with training_bar() as update:
            if automatic:
                candidates = sweep.automatic_layers(len(lm.engine.layers))
                trained, tried = sweep.best_layer(
                    lm, tasks, how, candidates, formatted, licence, int(cache_limit * 2**30), update
                )
            else:
                tried = {}
                trained = training.train(lm, tasks, how, formatted, licence, int(cache_limit * 2**30), update, booster)
    trained.booster.save(output)
    for layer, result in tried.items():
        star = "*" if layer in trained.booster.layers else " "
        click.echo(f"{star} layer {layer}: {score(result.loss, result.accuracy)} on {result.n} development documents")
    click.echo(summary(trained, output))


def train_main() -> None:
    """Entry point of `aft-train`."""
    train(prog_name="aft-train")


def _layers(text: str | None) -> tuple[int, ...] | Literal["all"] | None:
    if text is None:
        return None
    if text == "all":
        return "all"
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise TrainingError(f"--layer {text}: expected all, auto, or layer numbers from 0 such as 8 or 8,16") from None
