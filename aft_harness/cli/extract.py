"""`aft extract`: boosters from activation statistics, the heuristics that AFT is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
)
from aft_harness.cli.terminal import counting_bar, quiet
from aft_harness.errors import TrainingError


@main.group("extract", context_settings=CONTEXT)
def extract() -> None:
    """Make a booster from activation statistics, without training."""


@extract.command("mean-difference", context_settings=CONTEXT)
@model_options
@drawing_options
@prompt_options
@click.option("--layer", type=int, help="Decoder layer from 0.  [default: half the number of layers]")
@click.option("--output", required=True, metavar="FILE.safetensors", help="The booster file to write.")
def mean_difference(
    *, model: dict[str, Any], drawing: dict[str, Any], prompting: dict[str, Any], layer: int | None, output: str
) -> None:
    """Mean activation of questions answered correctly minus incorrectly, of norm one."""
    check_output(output)
    with quiet():
        from aft_harness.harness import examples
        from aft_harness.training import extraction

        formatted = examples.Prompting(**prompting)
        loaded = examples.load_tasks(selections(**drawing), formatted.include_path)
        if len(loaded) != 1:
            raise TrainingError(f"mean-difference takes one task, not {len(loaded)}")
        lm = load_model(**model)
        (task,) = drawn(lm, loaded, formatted, drawing["split_seed"])
        with counting_bar("answering", "request") as update:
            booster = extraction.mean_difference(lm, task, layer, formatted, update)
    booster.save(output)
    told = booster.provenance
    right, count = told["answered_correctly"], told["documents"]["count"]
    click.echo(f"{output}: layer {booster.layers[0]}, {right} documents answered correctly, {count - right} not")


@extract.command("function-vector", context_settings=CONTEXT)
@model_options
@click.option(
    "--questions",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with one question a line.  [default: ten of general kind]",
)
@click.option("--layer", type=int, help="Decoder layer from 0.  [default: 16, or the middle of a shallow model]")
@click.option("--output", required=True, metavar="FILE.safetensors", help="The booster file to write.")
def function_vector(*, model: dict[str, Any], questions: Path | None, layer: int | None, output: str) -> None:
    """Mean last-token activation of step-by-step prompts minus direct prompts, of norm one."""
    check_output(output)
    asked = _lines(questions) if questions else None
    with quiet():
        from aft_harness.training import extraction

        lm = load_model(**model)
        booster = extraction.function_vector(lm, asked or extraction.QUESTIONS, layer)
    booster.save(output)
    click.echo(f"{output}: layer {booster.layers[0]}, {len(booster.provenance['questions'])} questions")


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"--questions {path}: cannot be read as text ({type(error).__name__})") from None
    if not lines:
        raise TrainingError(f"--questions {path}: holds no question")
    return lines
