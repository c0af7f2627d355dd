"""`aft train`, which is `aft-train`: boosters by gradient descent."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

import click

from aft_harness.cli.app import CONTEXT, is_first_process, main, resumable
from aft_harness.cli.drawing import mixture, training_drawing_options
from aft_harness.cli.options import (
    check_model,
    model_arguments,
    model_options,
    prompt_format,
    prompt_options,
    settings,
    training_options,
)
from aft_harness.cli.terminal import forecast_summary, quiet, show_examples, training_bar, training_summary
from aft_harness.cli.values import (
    BOOSTER_FILE,
    LAYERS_OR_AUTO,
    Number,
    OutputFile,
    PlainTexts,
    overwrite_option,
    refuse_existing,
)
from aft_harness.training.recipe import Settings


@main.command("train", context_settings=CONTEXT)
@model_options
@training_drawing_options
@prompt_options
@click.option(
    "--layer",
    "--layers",
    "layers",
    type=LAYERS_OR_AUTO,
    metavar="L,A-B,A-,...",
    help=f"Decoder layers, from 0; all; auto = choose one on development documents.  [default: {Settings().layers}]",
)
@training_options
@click.option(
    "--start",
    metavar="V.safetensors[:S]",
    help="Booster to start from, in the syntax of vector=.  [default: the unchanged model]",
)
@click.option(
    "--keep-texts",
    type=PlainTexts(),
    metavar="FILE",
    help="Plain text for --keep: paragraphs, or JSON lines with a field text.  [default: samples of the model]",
)
@click.option(
    "--cache-limit",
    type=Number(min=0),
    default=2.0,
    show_default=True,
    metavar="GIB",
    help="Memory for cached hidden states; the rest goes to a temporary file.",
)
@click.option(
    "--memory",
    type=Number(min=0, min_open=True),
    metavar="GIB",
    help="Memory that training may take, the model included.  [default: half of what is free]",
)
@click.option("--licence", help="Licence to record in the booster.")
@click.option(
    "--curves",
    type=OutputFile(checked=False),
    metavar="FILE.png",
    help="Also save the loss curves, as an image and as CSV.",
)
@click.option("--dry-run", is_flag=True, help="Print how much memory and time training will take, and train nothing.")
@click.option("--output", required=True, type=BOOSTER_FILE, metavar="FILE.safetensors", help="File to write.")
@overwrite_option
@click.pass_context
def train(
    context: click.Context,
    *,
    model: dict[str, Any],
    drawing: dict[str, Any],
    prompting: dict[str, Any],
    layers: Any,
    hyperparameters: dict[str, Any],
    start: str | None,
    keep_texts: list[str] | None,
    cache_limit: float,
    memory: float | None,
    licence: str | None,
    curves: Path | None,
    dry_run: bool,
    output: Path,
) -> None:
    """Train a booster on lm-eval tasks, or on pairs of texts.

    The model stays frozen; training learns vectors that make the correct answers, or the chosen texts, more likely.
    With --objective rejection or reward it learns from its own texts. If training is interrupted, rerun the same
    command to resume.
    """
    tasks, pairs = mixture(**drawing)
    shots = {"--num-fewshot": prompting["num_fewshot"], "--fewshot-as-multiturn": prompting["fewshot_as_multiturn"]}
    if not tasks and (unused := [name for name, value in shots.items() if value is not None]):
        raise click.UsageError(f"{unused[0]} needs --tasks")
    with quiet():
        from aft_harness.api import training as api

        check_model(model, layers)
        state = output.with_name(f"{output.name}.resume")
        resumable(context, state)
        name, arguments = model_arguments(model)
        how = settings(hyperparameters, layers=layers, split_seed=drawing["split_seed"]) | {
            "tasks": tasks,
            "pairs": pairs,
            "prompt_format": prompt_format(prompting),
            "include_path": prompting["include_path"],
            "keep_texts": keep_texts,
            "cache_limit": int(cache_limit * 2**30),
            "memory": None if memory is None else int(memory * 2**30),
            "model_args": arguments,
        }
        if dry_run:
            click.echo(forecast_summary(api.forecast(name, **how)))
            return
        if curves is not None and not any(state.parent.glob(f"{glob.escape(state.name)}*")):
            refuse_existing(context, curves, curves.with_suffix(".csv"), hint="'--curves'")
        written: list[Path] = []

        def save(result: Any) -> None:
            if is_first_process():  # all have the same booster
                written.extend(result.save_curves(curves) if curves else ())
                result.booster.save(output)  # last: where it is, nothing is left to do

        with training_bar() as update:
            result = api.train(
                name,
                start=start,
                licence=licence,
                resume=state,
                on_examples=show_examples,
                on_progress=update,
                on_result=save,
                **how,
            )
        if not is_first_process():
            return
    click.echo(training_summary(result, output))
    for path in written:
        click.echo(f"curves    {path}")


def train_main() -> None:
    """Entry point of `aft-train`."""
    train(prog_name="aft-train")
