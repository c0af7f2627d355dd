"""`aft evaluate` and `aft compare`: boosters against a baseline, document by document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aft_harness.cli.app import CONTEXT, main, note, resumable
from aft_harness.cli.drawing import pairs_option
from aft_harness.cli.options import (
    check_model,
    format_option,
    model_arguments,
    model_options,
    prompt_format,
    prompt_options,
)
from aft_harness.cli.report import report_line
from aft_harness.cli.terminal import counting_bar, forecast_summary, quiet
from aft_harness.cli.values import BATCH_SIZE, FILE, FOLDER, SLICE, OutputFile, overwrite_option
from aft_harness.files import make_folder
from aft_harness.slices import Slice


@main.command("evaluate", context_settings=CONTEXT)
@model_options
@click.option(
    "--vector",
    "vectors",
    multiple=True,
    required=True,
    metavar="V",
    help="Booster, in the syntax of vector=; may be repeated.",
)
@click.option("--tasks", metavar="T,...", help="lm-eval tasks to evaluate.")
@pairs_option
@prompt_options
@click.option("--limit", type=click.IntRange(min=1), help="Maximum number of documents per task, for a quick look.")
@click.option("--docs", type=SLICE, metavar="A:B", help="Documents to evaluate, as a slice of ids.")
@click.option("--batch-size", type=BATCH_SIZE, default="16", show_default=True, help="Rows per forward pass, or auto.")
@click.option("--output", type=FOLDER, help="Folder for lm-eval's output files, one subfolder per booster.")
@click.option(
    "--csv", "table_file", type=OutputFile(), help="File for the paired results, with the columns of a leaderboard."
)
@click.option(
    "--use-cache", type=FILE, help="File that stores computed answers, so that an interrupted run can resume."
)
@overwrite_option
@click.option("--confirm-run-unsafe-code", is_flag=True, help="Allow tasks that execute model-generated code.")
@click.option(
    "--dry-run", is_flag=True, help="Print how much memory and time the evaluation will take, and evaluate nothing."
)
@format_option
@click.pass_context
def evaluate(
    context: click.Context,
    *,
    model: dict[str, Any],
    vectors: tuple[str, ...],
    tasks: str | None,
    pairs: tuple[str, ...],
    prompting: dict[str, Any],
    limit: int | None,
    docs: Slice | None,
    batch_size: int | str,
    output: Path | None,
    table_file: Path | None,
    use_cache: Path | None,
    confirm_run_unsafe_code: bool,
    dry_run: bool,
    form: str,
) -> None:
    """Evaluate boosters against a shared baseline.

    All boosters run in one pass over the tasks, and the results are printed as a paired table.
    """
    if tasks is None and not pairs:
        raise click.UsageError("Missing option '--tasks' or '--pairs'")
    if limit is not None and docs is not None:
        raise click.UsageError("--limit and --docs cannot be used together")
    if dry_run and pairs:
        raise click.UsageError("--dry-run and --pairs cannot be used together")
    if output is not None and not dry_run:
        make_folder(output)
    if use_cache is not None:
        resumable(context, use_cache)
    with quiet():
        from aft_harness.api import evaluation as api
        from aft_harness.results import table

        check_model(model)
        name, arguments = model_arguments(model, batch_size)
        asked: dict[str, Any] = {
            "tasks": tasks or (),
            "boosters": list(vectors),
            "limit": limit,
            "docs": docs,
            "prompt_format": prompt_format(prompting),
            "include_path": prompting["include_path"],
            "confirm_run_unsafe_code": confirm_run_unsafe_code,
            "model_args": arguments,
        }
        if dry_run:
            click.echo(forecast_summary(api.forecast_evaluation(name, **asked)))
            return
        with counting_bar("evaluating", "request") as update:
            found = api.evaluate(name, pairs=pairs, output=output, use_cache=use_cache, on_progress=update, **asked)
        if table_file is not None:
            table.to_csv(found.table, table_file)
    silent = sorted(set(found.variants[0].results["samples"]) - set(found.table["task"]))
    if silent:
        note(f"not compared, because no metric has one value per document: {', '.join(silent)}")
    click.echo(table.render(found.table, form))
    if output is not None:
        note(report_line(output, samples=True))


@main.command("compare", context_settings=CONTEXT)
@click.argument("baseline", type=click.Path(path_type=Path))
@click.argument("steered", type=click.Path(path_type=Path))
@click.option("--task", required=True, help="Task with samples in both folders.")
@click.option("--metric", default="acc", show_default=True, help="Metric to compare.")
@click.option("--filter", "filter_name", help="Filter to compare, if the task has several.")
@click.option("--docs", type=SLICE, metavar="A:B", help="Documents to compare, as a slice of ids.  [default: all]")
def compare(baseline: Path, steered: Path, task: str, metric: str, filter_name: str | None, docs: Slice | None) -> None:
    """Compare two lm_eval runs document by document.

    BASELINE and STEERED are output folders of lm_eval --log_samples. The result includes an exact test.
    """
    from aft_harness.results.pairing import compare_samples, read_samples, select
    from aft_harness.results.table import sentence

    before, after = (select(read_samples(folder, task, filter_name), docs) for folder in (baseline, steered))
    paired = compare_samples(before, after, metric)
    click.echo(f"{task} {metric}{f', documents {docs}' if docs else ''}: {sentence(paired)}")
