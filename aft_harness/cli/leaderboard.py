"""`aft leaderboard`: tables of paired results that runs of lm_eval are added to."""

from __future__ import annotations

from pathlib import Path

import click

from aft_harness.cli.app import CONTEXT, main
from aft_harness.errors import TaskError

_TABLE = click.Path(path_type=Path, dir_okay=False)


@main.group("leaderboard", context_settings=CONTEXT)
def leaderboard() -> None:
    """Collect results of boosters in a CSV file, with tests that are corrected for their number."""


@leaderboard.command("add", context_settings=CONTEXT)
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--to", "table", required=True, type=_TABLE, help="The CSV file; made if it does not exist.")
def add(folders: tuple[Path, ...], table: Path) -> None:
    """Pair the runs in output folders of lm_eval --log_samples, and add what came out.

    Each run with a booster needs one without, of the same model on the same documents with the same prompts. Boosters
    that differ in their seed alone also make a row that pools them.
    """
    from aft_harness.results import leaderboard

    if not table.parent.is_dir():
        raise TaskError(f"--to {table}: {table.parent} is not a folder")
    runs = [run for folder in folders for run in leaderboard.read_runs(folder)]
    rows = leaderboard.rows(runs)
    if not rows:
        raise TaskError(f"{', '.join(map(str, folders))}: no run has a booster; run lm_eval with --model steered-hf")
    added, replaced = leaderboard.add(table, rows)
    click.echo(f"{table}: {added} rows added, {replaced} replaced, {len(rows) - added - replaced} there already")


@leaderboard.command("show", context_settings=CONTEXT)
@click.argument("table", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--task", "tasks", multiple=True, help="Only this task; may be repeated.")
@click.option("--metric", help="Only this metric.  [default: those that p-values are corrected for]")
@click.option("--sort", metavar="COLUMN", default="delta", show_default=True, help="Largest values first.")
@click.option("--limit", type=click.IntRange(min=1), help="So many rows at most.")
@click.option("--heat-map", type=_TABLE, help="Also draw trained-on by evaluated-on, as PNG or SVG.")
def show(
    table: Path, tasks: tuple[str, ...], metric: str | None, sort: str, limit: int | None, heat_map: Path | None
) -> None:
    """Print a leaderboard as Markdown."""
    from aft_harness.results import leaderboard, plots

    frame = leaderboard.load(table)
    if sort not in frame:
        raise TaskError(f"--sort {sort}: the columns are {', '.join(leaderboard.COLUMNS)}")
    if unknown := sorted(set(tasks) - set(frame["task"])):
        raise TaskError(f"--task {unknown[0]}: the table has {', '.join(sorted(set(frame['task'])))}")
    if metric is not None and metric not in set(frame["metric"]):
        raise TaskError(f"--metric {metric}: the table has {', '.join(sorted(set(frame['metric'])))}")
    frame = frame[frame["task"].isin(tasks)] if tasks else frame
    frame = frame[frame["metric"] == metric] if metric else frame[frame["p_holm"].notna()]
    frame = frame.sort_values(sort, ascending=False, kind="stable")
    if heat_map is not None:
        plots.plot_transfer(frame, heat_map)
    click.echo("\n".join(leaderboard.shown(frame.head(limit) if limit else frame)))
