"""`aft leaderboard`: tables of paired results that runs of lm_eval are added to."""

from __future__ import annotations

from pathlib import Path

import click

from aft_harness.cli.app import CONTEXT, main, note
from aft_harness.cli.options import format_option
from aft_harness.cli.values import FILE, OutputFile, in_folder, overwrite_option
from aft_harness.errors import TaskError


@main.group("leaderboard", context_settings=CONTEXT)
def leaderboard() -> None:
    """Collect booster results in a CSV file, with corrected p-values."""


@leaderboard.command("add", context_settings=CONTEXT)
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--to", "table_file", required=True, type=FILE, help="CSV file; created if it does not exist.")
@click.option("--replace", is_flag=True, help="Also replace rows on other documents and rows that pool more seeds.")
def add(folders: tuple[Path, ...], table_file: Path, replace: bool) -> None:
    """Pair the runs in output folders of lm_eval --log_samples, and add the results.

    Each run with a booster needs a baseline run of the same model on the same documents with the same prompts. Boosters
    that differ only in their seed also get a row that pools them. Results on other documents or with other prompts get
    rows of their own.
    """
    in_folder("--to", table_file)
    from aft_harness.results import leaderboard
    from aft_harness.results.runs import read_runs, rows

    found = rows([run for folder in folders for run in read_runs(folder)])
    if not found:
        raise TaskError(f"{', '.join(map(str, folders))}: no run has a booster; run lm_eval with --model steered-hf")
    added, replaced, kept = leaderboard.add(table_file, found, replace=replace)
    known = len(found) - added - replaced
    click.echo(f"{table_file}: {added} rows added, {replaced} replaced, {known} already present")
    if kept:
        what = "matching rows on other documents or with more pooled seeds"
        note(f"{table_file}: {kept} {what} were kept; use --replace to replace them")


@leaderboard.command("show", context_settings=CONTEXT)
@click.argument("table_file", metavar="TABLE", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--task", "tasks", multiple=True, help="Only this task; may be repeated.")
@click.option("--metric", help="Only this metric.  [default: the metrics with corrected p-values]")
@click.option(
    "--sort", metavar="COLUMN", default="delta", show_default=True, help="Column to sort by, largest values first."
)
@click.option("--limit", type=click.IntRange(min=1), help="Maximum number of rows.")
@click.option("--heat-map", type=OutputFile(), help="Also draw training tasks by evaluation tasks, as PNG or SVG.")
@overwrite_option
@format_option
def show(
    table_file: Path,
    tasks: tuple[str, ...],
    metric: str | None,
    sort: str,
    limit: int | None,
    heat_map: Path | None,
    form: str,
) -> None:
    """Print a leaderboard."""
    from aft_harness.results import leaderboard, plots, table

    frame = leaderboard.load(table_file)
    _known("--sort", [sort], list(table.COLUMNS))
    _known("--task", tasks, sorted(set(frame["task"])))
    _known("--metric", [metric] if metric else [], sorted(set(frame["metric"])))
    frame = frame[frame["task"].isin(tasks)] if tasks else frame
    frame = frame[frame["metric"] == metric] if metric else frame[frame["p_holm"].notna()]
    frame = frame.sort_values(sort, ascending=False, kind="stable")
    if heat_map is not None:
        from aft_harness.harness.metrics import lower_is_better

        plots.plot_transfer(frame, heat_map, lower_is_better(frame["metric"]))
    click.echo(table.render(frame.head(limit) if limit else frame, form))


def _known(option: str, values: list[str] | tuple[str, ...], known: list[str]) -> None:
    for value in values:
        if value not in known:
            raise click.BadParameter(
                f"{value}: not in the table, which has {', '.join(known)}", param_hint=f"'{option}'"
            )
