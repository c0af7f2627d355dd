"""`aft sweep`: which strength, which layer, chosen on development documents and reported on test documents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aft_harness.boosters.layers import Layers
from aft_harness.cli.app import CONTEXT, main, note, option, resumable
from aft_harness.cli.drawing import development_options, drawing_options, selections
from aft_harness.cli.options import (
    check_model,
    format_option,
    model_arguments,
    model_options,
    opened_for_evaluation,
    opened_model,
    place_option,
    prompt_format,
    prompt_options,
    recipe_settings,
    test_options,
    training_options,
)
from aft_harness.cli.report import report_line
from aft_harness.cli.terminal import cell_bar, counting_bar, note_examples, quiet, sweep_summary, training_bar
from aft_harness.cli.values import FOLDER, LAYERS
from aft_harness.files import absolute, make_folder
from aft_harness.harness.selection import TaskSelection, task_names
from aft_harness.studies.workers import Place
from aft_harness.training.recipe import Settings

if TYPE_CHECKING:
    from aft_harness.studies.sweep import Sweep, Test


@main.group("sweep", context_settings=CONTEXT)
def sweep() -> None:
    """Sweep over layers or strengths; rerun the same command to resume."""


_OUTPUT = click.option(
    "--output",
    required=True,
    type=FOLDER,
    help="Folder for sweep.csv, sweep.png and the files that an interrupted sweep resumes from.",
)


@sweep.command("strengths", context_settings=CONTEXT)
@model_options
@click.option("--vector", required=True, metavar="V", help="Booster, in the syntax of vector=.")
@click.option("--strengths", required=True, metavar="S,...", help="For example 0.5,1,1.5; 0 is the unchanged model.")
@development_options
@test_options
@prompt_options
@place_option
@format_option
@_OUTPUT
@click.pass_context
def strengths(
    context: click.Context,
    *,
    model: dict[str, Any],
    vector: str,
    strengths: str,
    drawing: dict[str, Any],
    testing: dict[str, Any],
    prompting: dict[str, Any],
    place: Place | None,
    form: str,
    output: Path,
) -> None:
    """Evaluate a booster at several strengths in one pass."""
    _prepare(context, testing, place, output)
    chosen = selections(**drawing, development_only=True)
    with quiet():
        from aft_harness.boosters import references
        from aft_harness.harness.examples import examples_of
        from aft_harness.harness.score_store import ScoreStore
        from aft_harness.studies import sweep

        check_model(model)
        with option("--strengths"):
            values = sweep.parse_strengths(strengths)
        with option("--vector"):
            variant = references.load(vector)
        test = _test(drawing, testing, prompting)
        if place is not None:
            how = Settings(split_seed=drawing["split_seed"])
            asked = {"settings": how, "variant": variant, "strengths": tuple(values)}
            _report(_on(place, model, chosen, test, output, **asked), output, form)
            return
        assert test.source is not None
        selected = test.source.select(chosen)
        with opened_for_evaluation(model) as lm:
            drawn = [examples_of(*each, lm, test.prompt_format, drawing["split_seed"]) for each in selected]
            for examples in drawn:
                note_examples(examples)
            with ScoreStore(output / "scores.sqlite") as store, counting_bar("evaluating", "request") as update:
                found = sweep.strengths(lm, variant, values, drawn, test, store, update)
        _report(found, output, form)


@sweep.command("layers", context_settings=CONTEXT)
@model_options
@click.option("--layers", required=True, type=LAYERS, metavar="L,A-B,A-,...|all", help="Decoder layers, from 0.")
@drawing_options
@test_options
@prompt_options
@training_options
@place_option
@format_option
@_OUTPUT
@click.pass_context
def layers(
    context: click.Context,
    *,
    model: dict[str, Any],
    layers: Layers,
    drawing: dict[str, Any],
    testing: dict[str, Any],
    prompting: dict[str, Any],
    hyperparameters: dict[str, Any],
    place: Place | None,
    form: str,
    output: Path,
) -> None:
    """Train a booster at each of several layers and evaluate all of them in one pass."""
    _prepare(context, testing, place, output)
    chosen = selections(**drawing)
    how = recipe_settings(hyperparameters, split_seed=drawing["split_seed"])
    with quiet():
        from aft_harness.harness.examples import examples_of
        from aft_harness.harness.score_store import ScoreStore
        from aft_harness.studies import sweep

        check_model(model, layers)
        test = _test(drawing, testing, prompting)
        if place is not None:
            _report(_on(place, model, chosen, test, output, settings=how, layers=layers), output, form)
            return
        assert test.source is not None
        selected = test.source.select(chosen)
        with opened_model(model) as lm:
            candidates = layers.resolve(len(lm.engine.layers))
            drawn = [examples_of(*each, lm, test.prompt_format, how.split_seed) for each in selected]
            for examples in drawn:
                note_examples(examples)
            with (
                ScoreStore(output / "scores.sqlite") as store,
                training_bar() as bar,
                counting_bar("evaluating", "request") as update,
            ):
                found = sweep.layers(
                    lm,
                    drawn,
                    how,
                    candidates,
                    output,
                    test,
                    store,
                    lambda done, total, progress: bar(progress, f"layer {candidates[done]}, {done + 1} of {total}"),
                    update,
                )
        _report(found, output, form)


def _prepare(context: click.Context, testing: dict[str, Any], place: Place | None, output: Path) -> None:
    if place is not None:
        place.check_installed()
    if testing["test_limit"] is not None and testing["test_docs"] is not None:
        raise click.UsageError("--test-limit and --test-docs cannot be used together")
    make_folder(output)
    resumable(context, output)


def _on(
    place: Place, model: dict[str, Any], chosen: list[TaskSelection], test: Test, output: Path, **asked: Any
) -> Sweep:
    """Runs a sweep on workers."""
    from aft_harness.studies import cluster
    from aft_harness.studies.sweep_cells import SweepWork

    name, arguments = model_arguments(model)
    assert test.source is not None
    work = SweepWork(
        {"pretrained": absolute(name), **arguments},
        tuple(chosen),
        tuple(test.tasks),
        test.prompt_format,
        test.limit,
        test.docs,
        tuple(map(absolute, test.source.include_path)),
        **asked,
    )
    with cell_bar() as reports:
        return cluster.sweep(work, output, place, reports)


def _test(drawing: dict[str, Any], testing: dict[str, Any], prompting: dict[str, Any]) -> Test:
    from aft_harness.harness.tasks import Tasks
    from aft_harness.studies import sweep

    names = task_names(testing["test_tasks"] or drawing["tasks"])
    source = Tasks(prompting["include_path"])
    source.check(names)
    return sweep.Test(names, prompt_format(prompting), testing["test_limit"], testing["test_docs"], source)


def _report(found: Sweep, output: Path, form: str) -> None:
    from aft_harness.results import table

    paths = found.save(output)
    click.echo(sweep_summary(found) if form == "table" else table.render(found.frame, form))
    for name, path in zip(("table", "plot"), paths, strict=True):
        click.echo(f"{name:<8}{path}", err=form != "table")
    note(report_line(output))
