"""`aft report`: results as one HTML file that people look at."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

import click

from aft_harness.cli.app import CONTEXT, main, note, verbosity
from aft_harness.cli.values import OutputFile, overwrite_option


@main.command("report", context_settings=CONTEXT)
@click.argument("sources", nargs=-1, required=True, metavar="FOLDER|CSV...", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=OutputFile(".html"), metavar="FILE.html", help="File to write.")
@click.option("--samples", is_flag=True, help="Include the documents gained and lost, with texts and loglikelihoods.")
@click.option("--title", help="Heading of the report.  [default: the names of the sources]")
@overwrite_option
def report(sources: tuple[Path, ...], output: Path, samples: bool, title: str | None) -> None:
    """Make one HTML file of results, to look at and to pass on.

    Sources are leaderboards, sweeps and training curves (CSV files), boosters, and the folders that `aft transfer`,
    `aft sweep`, `aft evaluate --output` and `lm_eval --log_samples` wrote. The file works without a network.
    """
    from aft_harness.publish.report import page

    if verbosity() <= 0:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # which announces every metric that it does not know
    page.report(sources, output, samples=samples, title=title, overwrite=True, on_note=note)
    click.echo(f"{output} ({output.stat().st_size:,} bytes)")


def report_line(*sources: Path, samples: bool = False) -> str:
    """The line that says how a report is made of what a command wrote."""
    words = ["aft", "report", *map(str, sources), *(["--samples"] if samples else []), "-o", "report.html"]
    return f"To look at the results: {shlex.join(words)}"
