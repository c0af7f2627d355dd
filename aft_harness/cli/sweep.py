"""`aft sweep`: which strength, which layer, chosen on development documents and reported on test documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aft_harness.cli.app import CONTEXT, KEPT, main
from aft_harness.cli.options import (
    check_writable,
    development_options,
    drawing_options,
    drawn,
    load_model,
    model_options,
    prompt_options,
    selections,
    settings,
    task_names,
    test_options,
    training_options,
)
from aft_harness.cli.terminal import counting_bar, quiet, sweep_table, training_bar

if TYPE_CHECKING:
    from aft_harness.harness.model import SteeredHFLM
    from aft_harness.studies.sweep import Point


@main.group("sweep", context_settings=CONTEXT)
def sweep() -> None:
    """Try layers or strengths; what is done is kept, and the same command goes on from there."""


_OUTPUT = click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for sweep.csv, sweep.png and what an interrupted sweep goes on from.",
)


@sweep.command("strengths", context_settings=CONTEXT)
@model_options
@click.option("--vector", required=True, metavar="V", help="A booster, as lm_eval's vector=.")
@click.option("--strengths", required=True, metavar="S,...", help="Such as 0.5,1,1.5; 0 is the unchanged model.")
@development_options
@test_options
@prompt_options
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
    output: Path,
) -> None:
    """Evaluate a booster at several strengths, all in one pass."""
    _prepare(context, testing, output)
    with quiet():
        from aft_harness.boosters import references
        from aft_harness.harness import examples
        from aft_harness.harness.score_store import ScoreStore
        from aft_harness.studies import sweep

        values = sweep.parse_strengths(strengths)
        booster, own = references.load(vector)
        formatted = examples.Prompting(**prompting)
        loaded = examples.load_tasks(selections(**drawing, development_only=True), formatted.include_path)
        test = _test(drawing, testing, formatted)
        lm = load_model(**model)
        development = drawn(lm, loaded, formatted, drawing["split_seed"])
        with ScoreStore(output / "scores.sqlite") as store, counting_bar("evaluating", "request") as update:
            points = sweep.strengths(
                lm,
                booster,
                [own * value for value in values],
                development,
                test,
                store,
                update,
                references.label(vector),
            )
    _report(points, lm, "strength", output)


@sweep.command("layers", context_settings=CONTEXT)
@model_options
@click.option("--layers", required=True, metavar="L,A-B,...|all", help="Decoder layers from 0.")
@drawing_options
@test_options
@prompt_options
@training_options
@_OUTPUT
@click.pass_context
def layers(
    context: click.Context,
    *,
    model: dict[str, Any],
    layers: str,
    drawing: dict[str, Any],
    testing: dict[str, Any],
    prompting: dict[str, Any],
    hyperparameters: dict[str, Any],
    output: Path,
) -> None:
    """Train a booster at each of several layers and evaluate all of them in one pass."""
    _prepare(context, testing, output)
    with quiet():
        from aft_harness.harness import examples
        from aft_harness.harness.score_store import ScoreStore
        from aft_harness.studies import sweep

        how = settings(hyperparameters, split_seed=drawing["split_seed"])
        formatted = examples.Prompting(**prompting)
        loaded = examples.load_tasks(selections(**drawing), formatted.include_path)
        test = _test(drawing, testing, formatted)
        lm = load_model(**model)
        candidates = sweep.parse_layers(layers, len(lm.engine.layers))
        tasks = drawn(lm, loaded, formatted, how.split_seed)
        with (
            ScoreStore(output / "scores.sqlite") as store,
            training_bar() as trained,
            counting_bar("evaluating", "request") as update,
        ):
            points = sweep.layers(
                lm,
                tasks,
                how,
                candidates,
                output,
                test,
                store,
                lambda done, total, progress: trained(progress, f"layer {done + 1} of {total}, "),
                update,
            )
    _report(points, lm, "layers", output)


def _prepare(context: click.Context, testing: dict[str, Any], output: Path) -> None:
    if testing["test_limit"] is not None and testing["test_docs"] is not None:
        raise click.UsageError("--test-limit and --test-docs exclude each other")
    check_writable("--output", output)
    context.meta[KEPT] = f"what is done is kept in {output}; the same command goes on from there"


def _report(points: Sequence[Point], lm: SteeredHFLM, over: str, output: Path) -> None:
    from aft_harness.studies.sweep import written

    paths = written(points, lm.base_model.name, over, output)
    click.echo(sweep_table(points))
    click.echo("\n".join(f"{name:<8}{path}" for name, path in paths.items()))


def _test(drawing: dict[str, Any], testing: dict[str, Any], formatted: Any) -> Any:
    from aft_harness.harness import examples
    from aft_harness.studies import sweep

    names = task_names(testing["test_tasks"] or drawing["tasks"])
    examples.task_manager(names, formatted.include_path)
    return sweep.Test(names, formatted, testing["test_limit"], testing["test_docs"])
