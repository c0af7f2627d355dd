"""Tries the library on small random models of many kinds, and writes docs/models.md.

    python scripts/tools/verify_models.py                  # `make verify-models`; minutes on two CPU cores
    python scripts/tools/verify_models.py --only llama --only gemma2

Knows the command line and the page; the kinds of models and what is checked stand in `models/`.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import click
import pandas as pd
import torch
from models.checks import CHECKS, Subject
from models.kinds import KINDS, ROADMAP, cut, small, tokenizer
from tables import put

from aft_harness.errors import AftError

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "leaderboards" / "models" / "models.csv"
PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- table: scripts/tools/verify_models.py -->", "<!-- end of table -->"
KNOWN = {("recurrent_gemma", "padding")}
"""What only holds without a booster; the page says why."""

EXPORTS = ("checkpoint", "peft")
"""Columns whose refusals are answers, and are told below the table."""


@click.command()
@click.option("--only", multiple=True, type=click.Choice([*KINDS, *ROADMAP]), help="Models.  [default: all]")
@click.option("--trace", is_flag=True, help="Print tracebacks of what fails.")
@click.option("--jobs", default=os.cpu_count() or 1, show_default="cores", help="Models that are tried at a time.")
def main(only: tuple[str, ...], trace: bool, jobs: int) -> None:
    """Tries every kind of model, and writes the page if all were tried."""
    rows = []
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as processes:
        for row in processes.map(partial(tried, trace=trace), only or (*KINDS, *ROADMAP)):
            rows.append(row)
            click.echo("  ".join(f"{name}={value}" for name, value in row.items()), err=True)
    if not only:
        table = pd.DataFrame(rows).fillna("")
        OUTPUT.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(OUTPUT, index=False)
        write_page(table)
    wrong = [f"{row['model']} ({name})" for row in rows for name, found in row.items() if _wrong(row, name, found)]
    if wrong:
        raise click.ClickException(f"{len(wrong)} checks failed: {', '.join(wrong)}")


def tried(kind: str, trace: bool) -> dict[str, str]:
    """What is found on a kind of model, by column; runs in a process of its own."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)  # these models are too small to gain by more
    row = {"model": kind}
    try:
        subject = Subject(small(kind) if kind in KINDS else cut(kind), tokenizer())
    except Exception as error:  # whatever a kind raises is its row
        row["layers"] = _failure(error, trace)
        return row
    for name, check in CHECKS.items():
        try:
            row[name] = check(subject)
        except Exception as error:
            row[name] = _failure(error, trace)
    return row


def write_page(table: pd.DataFrame) -> None:
    """Puts the table into the page, and below it why exports are refused."""
    reasons: dict[str, int] = {}
    lines = [f"| {' | '.join(table.columns)} |", "|---" * len(table.columns) + "|"]
    for row in table.to_dict("records"):
        cells = []
        for name, value in row.items():
            if name in EXPORTS and value.startswith("refused: "):
                kind = ROADMAP.get(row["model"], {}).get("model_type", row["model"])
                why = value.removeprefix("refused: ").replace(f"type {kind} ", "this type ")
                value = f"no ({reasons.setdefault(why, len(reasons) + 1)})"
            cells.append(value.split("\n")[0])
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"{number}. {why}" for why, number in reasons.items())]
    put(PAGE, BEGIN, END, lines)


def _wrong(row: dict[str, str], name: str, found: str) -> bool:
    return found.startswith("FAILED") or (found == "only without" and (row["model"], name) not in KNOWN)


def _failure(error: Exception, trace: bool) -> str:
    if trace:
        traceback.print_exc(file=sys.stderr)
    first = (str(error).strip().splitlines() or [""])[0][:160]
    return f"FAILED: {first}" if isinstance(error, AftError) else f"FAILED: {type(error).__name__}: {first}"


if __name__ == "__main__":
    main()
