"""Boosters against what else could be reached for: heuristics, parameter-efficient fine-tuning, prompting.

    python scripts/studies/compare.py FOLDER        # hours on two CPU cores; rerun the same command to resume

Every method gets the same training documents, chooses its rate or strength on the same development documents, and sees
the test documents once. Real rows are needed: set HF_DATASETS_CACHE to a cache that holds them, or be online.

What is done is kept in leaderboards/comparison/cells; boosters and the environments of other packages are in FOLDER.
Written: the CSV files and plots of leaderboards/comparison, and the tables of docs/comparison.md, which says what their
columns mean.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from comparison.fitted import Fitted

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "leaderboards" / "comparison"
SEEDS = (0, 1, 2)
SEEDED = ("ours", "LoRA r=8")
"""Methods that learn every task, with every seed, and once by the ranking of choices alone; others learn ARC-Easy."""


def cells() -> Iterator[tuple[str, str, int]]:
    """Every (method, task, seed), the most telling first."""
    from comparison.exams import LEARN
    from comparison.fitted import ALONE
    from comparison.methods import METHODS, PLENTY

    yield "zero-shot", "arc_easy", 0
    for method in (*SEEDED, *METHODS):
        if method != PLENTY:
            yield method, "arc_easy", 0
    for seed in SEEDS:
        for task in LEARN:
            for method in SEEDED:
                yield method, task, seed
    for task in LEARN:
        for method in SEEDED:
            yield method + ALONE, task, 0
    yield PLENTY, "hellaswag", 0


def run_cell(method: str, task: str, seed: int, folder: Path) -> None:
    """Runs one cell unless its file is there; a method that fails leaves its error."""
    from comparison.exams import CELLS
    from comparison.methods import METHODS

    from aft_harness.files import write_atomically

    path = CELLS / f"{method.replace(' ', '_')}-{task}-{seed}.json"
    if path.is_file():
        return
    click.echo(f"{method}, {task}, seed {seed}", err=True)
    start = time.perf_counter()
    cell: dict[str, Any] = {"method": method, "task": task, "seed": seed}
    try:
        fitted = METHODS[method](task, seed, folder)
        cell |= {
            "parameters": fitted.parameters,
            "file_bytes": fitted.file_bytes,
            "seconds": fitted.seconds,
            "tried": fitted.tried,
            **examined(fitted, method, task),
        }
    except Exception as error:  # whatever a method's package raises; the table lists it
        cell["error"] = error.message if isinstance(error, click.ClickException) else f"{type(error).__name__}: {error}"
        click.echo(f"    {cell['error']}", err=True)
    cell["cell_seconds"] = time.perf_counter() - start
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(cell).encode())


def examined(fitted: Fitted, method: str, task: str) -> dict[str, Any]:
    """Outcomes of every exam, and the perplexity of plain text."""
    from comparison.exams import exam, exams_of, passages, perplexity

    counts = exams_of("hellaswag" if method == "zero-shot" else task)
    if fitted.shots:
        counts = {name: count for name, count in counts.items() if name != "hellaswag"}
    outcomes = {}
    for name, count in counts.items():
        documents = exam(name, fitted.shots, count)
        outcomes[name] = documents.grade(fitted.score(documents.requests))
        click.echo(f"    {name}: acc {sum(outcomes[name]['acc']) / len(outcomes[name]['acc']):.1%}", err=True)
    if fitted.shots:
        return {"outcomes": outcomes, "perplexity": None}
    return {"outcomes": outcomes, "perplexity": perplexity(fitted.score, passages())}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--only", multiple=True, help="METHOD or METHOD:TASK:SEED; everything else is left for later.")
@click.option("--minutes", type=float, help="Start no further cell after so many minutes.")
def main(folder: Path, only: tuple[str, ...], minutes: float | None) -> None:
    """Run the comparison, or what of it is not done yet, and write its tables."""
    from aft_harness.cli.terminal import quiet

    start = time.perf_counter()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")
    with quiet():
        from comparison.report import write

        for method, task, seed in cells():
            if only and not {method, f"{method}:{task}:{seed}"} & set(only):
                continue
            if minutes is not None and time.perf_counter() - start > 60 * minutes:
                break
            run_cell(method, task, seed, folder)
    write(OUTPUT, ROOT / "docs" / "comparison.md")


if __name__ == "__main__":
    main()
