"""Evaluates 1,000 boosters at once and 10,000 documents, and fills a leaderboard: `make verify-load`.

Time and memory of each are measured with a tiny random model and generated questions, so that what remains is the
harness. Each case runs twice, small and large, in processes of their own; how much memory the large one takes beyond
the small one is what an item more costs, and must stay below what its results hold. Writes
`leaderboards/cost/load.csv` and a table in `docs/cost.md`.

    python scripts/tools/check_load.py
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pandas as pd
from processes import in_a_process
from tables import put, updated

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "leaderboards" / "cost" / "load.csv"
PAGE = ROOT / "docs" / "cost.md"
BEGIN, END = "<!-- load: scripts/tools/check_load.py -->", "<!-- end of load -->"
HIDDEN = 32


@dataclass(frozen=True)
class Case:
    """Something that grows.

    Attributes:
        what: What there are many of.
        small: How many of them at first.
        large: How many of them then.
        bound: Bytes that an item more may take.
        run: Does it for so many.
    """

    what: str
    small: int
    large: int
    bound: int
    run: Callable[[int], None]


TASK = """task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def make_task(folder: Path, documents: int) -> None:
    """Writes a task of so many sums with four answers each."""
    draw = random.Random(0)
    with (folder / "sums.jsonl").open("w", encoding="utf-8") as file:
        for number in range(documents):
            first, second = draw.randint(10, 999), draw.randint(10, 999)
            question = f"Question {number}: How much is {first} and {second}?\nAnswer:"
            choices = [f" {first + second + change}" for change in (0, 1, 10, 100)]
            file.write(json.dumps({"question": question, "choices": choices, "answer": 0}) + "\n")
    (folder / "sums.yaml").write_text(TASK.replace("DATA", json.dumps(str(folder / "sums.jsonl"))), encoding="utf-8")


def evaluate(boosters: int, documents: int) -> None:
    """Evaluates random boosters with a tiny model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    import aft_harness as aft
    from aft_harness.boosters.injections import StaticInjection
    from aft_harness.demo import model_folder

    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    vectors = {f"booster-{number}": StaticInjection(torch.randn(HIDDEN)) for number in range(boosters)}
    mapping = {name: aft.Booster.of({1: vector}) for name, vector in vectors.items()}
    with tempfile.TemporaryDirectory() as folder:
        make_task(Path(folder), documents)
        found = aft.evaluate(model, tokenizer, tasks="sums", boosters=mapping, include_path=[folder])
    assert len(found.variants) == boosters + 1 and (found.table["n"] == documents).all()


def add(rows: int) -> None:
    """Adds rows to a leaderboard in ten steps, as ten studies would."""
    from aft_harness.results import leaderboard, table

    blank: dict[str, Any] = dict.fromkeys(table.COLUMNS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "leaderboard.csv"
        for start in range(0, rows, rows // 10):
            numbers = range(start, start + rows // 10)
            shared = {"model": "model", "task": "task", "metric": "acc", "strength": 1.0, "n": 100, "seed": "0"}
            leaderboard.add(
                path,
                [
                    {**blank, **shared, "booster_sha256": f"{number:064x}", "p_value": 0.5, "p_holm": 0.5}
                    for number in numbers
                ],
            )
        assert len(table.read(path)) == rows


CASES = {
    "boosters": Case("boosters on 20 questions", 10, 1000, 100_000, lambda n: evaluate(n, 20)),
    "documents": Case("questions, one booster", 500, 10_000, 30_000, lambda n: evaluate(1, n)),
    "rows": Case("rows of a leaderboard", 1000, 10_000, 20_000, add),
}
"""Results of one document under one booster are about 2 KB, most of them the answers in lm-eval's samples."""


def measured(run: Callable[[int], None], count: int) -> dict[str, float]:
    """Seconds of a case."""
    begun = time.perf_counter()
    run(count)
    return {"seconds": time.perf_counter() - begun}


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(CASES)), help="Case to check.  [default: all]")
def main(only: tuple[str, ...]) -> None:
    """Compare the memory of a few and of many."""
    wrong, rows = [], []
    for name in only or CASES:
        case = CASES[name]
        small, large = (in_a_process(lambda: measured(case.run, count)) for count in (case.small, case.large))  # noqa: B023
        more = (large["peak"] - small["peak"]) / (case.large - case.small)
        row = {
            "case": name,
            "what": case.what,
            "small": case.small,
            "large": case.large,
            "seconds": round(large["seconds"], 1),
            "memory_small": round(small["peak"] / 2**30, 3),
            "memory_large": round(large["peak"] / 2**30, 3),
            "bytes_an_item": round(more),
        }
        rows.append(row)
        click.echo(row)
        if more > case.bound:
            wrong.append(f"{name}: {more:.0f} bytes an item where {case.bound} are allowed")
    write_page(updated(OUTPUT, rows, "case", list(CASES)))
    if wrong:
        click.echo("; ".join(wrong), err=True)
        sys.exit(1)


def write_page(table: pd.DataFrame) -> None:
    """Puts the table into the page."""
    lines = ["| what | how many | time, s | memory, GiB | memory of how many, GiB | KB more for each |"]
    lines.append("|---|--:|--:|--:|--:|--:|")
    for row in table.to_dict("records"):
        few = f"{row['small']}: {row['memory_small']:.2f}"
        each = f"{row['bytes_an_item'] / 1000:.1f}"
        lines.append(
            f"| {row['what']} | {row['large']} | {row['seconds']:.0f} | {row['memory_large']:.2f} | {few} | {each} |"
        )
    put(PAGE, BEGIN, END, lines)


if __name__ == "__main__":
    main()
