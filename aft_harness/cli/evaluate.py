"""`aft evaluate` and `aft compare`: boosters against a baseline, document by document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aft_harness.cli.app import CONTEXT, KEPT, main
from aft_harness.cli.options import check_writable, load_model, model_options, prompt_options, task_names
from aft_harness.cli.terminal import counting_bar, quiet


@main.command("evaluate", context_settings=CONTEXT)
@model_options
@click.option(
    "--vector",
    "vectors",
    multiple=True,
    required=True,
    metavar="V",
    help="A booster, as lm_eval's vector=; may be repeated.",
)
@click.option("--tasks", required=True, metavar="T,...", help="lm-eval tasks to evaluate.")
@prompt_options
@click.option("--limit", type=click.IntRange(min=1), help="Documents per task, for a first look.")
@click.option("--docs", metavar="A:B", help="Documents by id instead, as a slice.")
@click.option("--batch-size", default="16", show_default=True, help="Rows a pass, or auto.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="Folder for lm-eval's output files.")
@click.option("--csv", "table", type=click.Path(path_type=Path, dir_okay=False), help="File for the paired results.")
@click.option("--use-cache", type=click.Path(path_type=Path, dir_okay=False), help="File of answers to go on from.")
@click.pass_context
def evaluate(
    context: click.Context,
    *,
    model: dict[str, Any],
    vectors: tuple[str, ...],
    tasks: str,
    prompting: dict[str, Any],
    limit: int | None,
    docs: str | None,
    batch_size: str,
    output: Path | None,
    table: Path | None,
    use_cache: Path | None,
) -> None:
    """Evaluate boosters against one shared baseline, in one pass over the tasks, and print the paired table."""
    if limit is not None and docs is not None:
        raise click.UsageError("--limit and --docs exclude each other")
    for option, folder in (("--output", output), ("--csv", table and table.parent)):
        if folder is not None:
            check_writable(option, folder)
    if use_cache is not None:
        context.meta[KEPT] = f"what is scored is kept in {use_cache}; the same command goes on from there"
    with quiet():
        from contextlib import nullcontext

        from aft_harness.boosters import references
        from aft_harness.harness import evaluation, examples
        from aft_harness.harness.score_store import ScoreStore
        from aft_harness.results import report

        formatted = examples.Prompting(**prompting)
        variants = [evaluation.Variant("baseline")]
        for number, vector in enumerate(vectors, start=1):
            booster, strength = references.load(vector)
            variants.append(evaluation.Variant(f"variant{number}", booster, strength))
        names = task_names(tasks)
        examples.task_manager(names, formatted.include_path)
        lm = load_model(batch_size=batch_size, **model)
        with (
            ScoreStore(use_cache) if use_cache else nullcontext() as store,
            counting_bar("evaluating", "request") as update,
        ):
            baseline, *steered = evaluation.evaluate(
                lm, variants, names, formatted, limit=limit, docs=docs, output=output, store=store, on_progress=update
            )
    rows = []
    tests = [list(evaluation.paired(baseline, results)) for results in steered]
    if silent := sorted(set(baseline.results["samples"]) - {task for task, _, _ in tests[0]}):
        click.echo(f"not compared, for want of a metric that is one number a document: {', '.join(silent)}", err=True)
    for vector, results, tested in zip(vectors, steered, tests, strict=True):
        click.echo(vector)
        variant = results.variant
        assert variant.booster is not None
        for task, metric, paired in tested:
            click.echo(f"  {task} {metric}: {report.said(paired)}")
            told = (lm.base_model.name, references.label(vector), variant.booster, variant.strength)
            rows.append(report.row(*told, task, metric, paired))
    if table is not None:
        report.write_csv(rows, table)


@main.command("compare", context_settings=CONTEXT)
@click.argument("baseline", type=click.Path(path_type=Path))
@click.argument("steered", type=click.Path(path_type=Path))
@click.option("--task", required=True, help="Task whose samples both folders hold.")
@click.option("--metric", default="acc", show_default=True, help="A metric of the task.")
@click.option("--filter", "filter_name", help="Name of a filter, where the task has several.")
@click.option("--docs", metavar="A:B", help="Documents by id, as a slice.  [default: all]")
def compare(baseline: Path, steered: Path, task: str, metric: str, filter_name: str | None, docs: str | None) -> None:
    """Compare two output folders of lm_eval --log_samples, document by document, with an exact test."""
    from aft_harness.results.pairing import compare_samples, read_samples, select
    from aft_harness.results.report import said

    before, after = (select(read_samples(folder, task, filter_name), docs) for folder in (baseline, steered))
    paired = compare_samples(before, after, metric)
    click.echo(f"{task} {metric}{f', documents {docs}' if docs else ''}: {said(paired)}")
