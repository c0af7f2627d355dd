"""`aft extract`: boosters from activation statistics, the heuristics that AFT is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aft_harness.cli.app import CONTEXT, main
from aft_harness.cli.drawing import drawing_options, selections
from aft_harness.cli.options import (
    check_model,
    model_options,
    opened_model,
    prompt_format,
    prompt_options,
)
from aft_harness.cli.terminal import counting_bar, note_examples, quiet
from aft_harness.cli.values import BOOSTER_FILE, overwrite_option
from aft_harness.errors import FileError, TrainingError

_OUTPUT = click.option("--output", required=True, type=BOOSTER_FILE, metavar="FILE.safetensors", help="File to write.")


@main.group("extract", context_settings=CONTEXT)
def extract() -> None:
    """Extract a booster from activation statistics, without training."""


@extract.command("mean-difference", context_settings=CONTEXT)
@model_options
@drawing_options
@prompt_options
@click.option("--layer", type=int, help="Decoder layer, counted from 0.  [default: half the number of layers]")
@_OUTPUT
@overwrite_option
def mean_difference(
    *, model: dict[str, Any], drawing: dict[str, Any], prompting: dict[str, Any], layer: int | None, output: Path
) -> None:
    """Contrast correctly and incorrectly answered questions.

    The booster is the mean activation of the former minus that of the latter, scaled to unit norm.
    """
    chosen = selections(**drawing)
    with quiet():
        from aft_harness.harness.examples import examples_of
        from aft_harness.harness.tasks import Tasks
        from aft_harness.training import extraction

        check_model(model, layer)
        selected = Tasks(prompting["include_path"]).select(chosen)
        if len(selected) != 1:
            raise TrainingError(f"mean-difference takes one task, not {len(selected)}")
        ((selection, task),) = selected
        with opened_model(model) as lm, counting_bar("answering", "request") as update:
            examples = examples_of(selection, task, lm, prompt_format(prompting), drawing["split_seed"])
            note_examples(examples)
            booster = extraction.mean_difference(lm, examples, layer, update)
        booster.save(output)
    right, documents = booster.provenance.answered_correctly or 0, booster.provenance.documents
    wrong = ((documents.count if documents else None) or 0) - right
    click.echo(f"{output}: layer {booster.layers[0]}, {right} documents answered correctly, {wrong} incorrectly")


@extract.command("function-vector", context_settings=CONTEXT)
@model_options
@click.option(
    "--questions",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with one question per line.  [default: ten general questions]",
)
@click.option(
    "--layer", type=int, help="Decoder layer, counted from 0.  [default: 16, or the middle of a shallow model]"
)
@_OUTPUT
@overwrite_option
def function_vector(*, model: dict[str, Any], questions: Path | None, layer: int | None, output: Path) -> None:
    """Contrast step-by-step and direct prompts.

    The booster is the mean last-token activation of the former minus that of the latter, scaled to unit norm.
    """
    asked = _lines(questions) if questions else None
    with quiet():
        from aft_harness.training import extraction

        check_model(model, layer)
        with opened_model(model) as lm:
            booster = extraction.function_vector(lm, asked or extraction.QUESTIONS, layer)
        booster.save(output)
    click.echo(f"{output}: layer {booster.layers[0]}, {len(booster.provenance.questions or ())} questions")


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path}: cannot be read as text ({type(error).__name__})") from None
    if not lines:
        raise FileError(f"{path}: contains no questions")
    return lines
