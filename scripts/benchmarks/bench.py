"""Measures speed and agreement against stock lm-eval: `make bench`.

Ours and the peer run alternately in one process, on the same rows, in the same dtype, at the same batch size. Printed
and written: the median ratio of times, the largest |difference| of loglikelihoods, the share of documents on which both
choose the same answer, and which share of the machine's measured matrix-product peak the needed operations reach: those
on every distinct token prefix, and the head's where an answer is predicted. The works named `scaling` have no peer and
show how our time grows with documents, few-shot examples and choices; `cell-overhead` runs no model but cells that do
nothing on two workers of a Ray cluster (the extra `ray`); those named `vllm` have their peer in another environment
(see engines.py), and those named `gguf` run in one that has llama-cpp-python (see gguf_files.py); without `--only`,
they are left out where it is missing. Real rows are needed: set HF_DATASETS_CACHE to a cache that holds them, or be
online.

    python scripts/benchmarks/bench.py --list
    python scripts/benchmarks/bench.py --only arc_easy-0shot --reps 3

Knows the command line, the works by name and the table. What a work runs stands in the modules beside this one.
"""

from __future__ import annotations

import csv
import datetime
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import engines
import generation
import gguf_files
import loglikelihoods
import machine
import scheduling
import training
import variants
from timing import Outcome

OUTPUT = Path(__file__).parents[2] / "leaderboards" / "bench" / "smollm2-135m.csv"
FIELDS = (
    "work",
    "peer",
    "dtype",
    "documents",
    "batch_size",
    "seconds_ours",
    "seconds_peer",
    "ratio",
    "max_abs_difference",
    "agreement",
    "peak_fraction",
    "note",
    "reps",
    "cpu",
    "torch",
    "lm_eval",
    "date",
)
SHOWN = {"work": 26, "peer": 22, "seconds_ours": 9, "seconds_peer": 9, "ratio": 8, "max_abs_difference": 10}
SHOWN |= {"agreement": 8, "peak_fraction": 7}
"""Columns that are printed, and their widths."""

WORKS: dict[str, Callable[[int, int], Outcome]] = {
    "hellaswag-0shot": lambda docs, reps: loglikelihoods.against("hf", "hellaswag", 0, "float32", docs, reps),
    "hellaswag-0shot-steered": lambda docs, reps: loglikelihoods.against(
        "steered", "hellaswag", 0, "float32", docs, reps
    ),
    "hellaswag-0shot-bf16": lambda docs, reps: loglikelihoods.against("hf", "hellaswag", 0, "bfloat16", docs, reps),
    "arc_easy-0shot": lambda docs, reps: loglikelihoods.against("hf", "arc_easy", 0, "float32", docs, reps),
    "arc_easy-5shot": lambda docs, reps: loglikelihoods.against("hf", "arc_easy", 5, "float32", docs // 2, reps),
    "arc_easy-5shot-first_n": lambda docs, reps: loglikelihoods.against(
        "hf", "arc_easy", 5, "float32", docs // 2, reps, "first_n"
    ),
    "hellaswag-strengths": lambda docs, reps: loglikelihoods.strengths("hellaswag", docs // 2, reps),
    "arc_easy-overhead": lambda docs, reps: loglikelihoods.overhead("arc_easy", docs // 10, reps),
    "eleven-variants-5shot": lambda docs, reps: variants.outside_passes("arc_easy", 5, 11, docs, reps),
    "training-letters": lambda docs, reps: training.against_published("float32", docs // 16 * 4, reps),
    "training-letters-bf16": lambda docs, reps: training.against_published("bfloat16", docs // 16 * 4, reps),
    "training-attention-bf16": lambda docs, reps: training.against_fused_attention(docs // 16 * 4, reps),
    "gsm8k-generation": lambda docs, reps: generation.greedy("gsm8k", 5, "float32", min(docs, 20), reps),
    "gsm8k-generation-bf16": lambda docs, reps: generation.greedy("gsm8k", 5, "bfloat16", min(docs, 48), reps),
    "gsm8k-generation-first_n-bf16": lambda docs, reps: generation.greedy(
        "gsm8k", 5, "bfloat16", min(docs, 48), reps, "first_n"
    ),
    "gsm8k-8samples-bf16": lambda docs, reps: generation.sampled("gsm8k", 5, "bfloat16", min(docs, 12), 8, 64, reps),
    "hellaswag-0shot-vllm": lambda docs, reps: engines.loglikelihoods("hellaswag", 0, "float32", docs, reps),
    "hellaswag-0shot-vllm-bf16": lambda docs, reps: engines.loglikelihoods("hellaswag", 0, "bfloat16", docs, reps),
    "arc_easy-5shot-vllm": lambda docs, reps: engines.loglikelihoods("arc_easy", 5, "float32", docs // 2, reps),
    "arc_easy-5shot-vllm-bf16": lambda docs, reps: engines.loglikelihoods("arc_easy", 5, "bfloat16", docs // 2, reps),
    "gsm8k-generation-vllm": lambda docs, reps: engines.generation("gsm8k", 5, "float32", min(docs, 20), reps),
    "gsm8k-generation-vllm-bf16": lambda docs, reps: engines.generation("gsm8k", 5, "bfloat16", min(docs, 20), reps),
    "cell-overhead": lambda docs, reps: scheduling.overhead(reps),
    "hellaswag-gguf-q4_0": lambda docs, reps: gguf_files.against_checkpoint("Q4_0", "hellaswag", docs // 4, reps),
    "hellaswag-gguf-q4_1": lambda docs, reps: gguf_files.against_checkpoint("Q4_1", "hellaswag", docs // 4, reps),
    "hellaswag-gguf-q8_0": lambda docs, reps: gguf_files.against_checkpoint("Q8_0", "hellaswag", docs // 4, reps),
    "arc_easy-gguf-q4_0": lambda docs, reps: gguf_files.against_checkpoint("Q4_0", "arc_easy", docs // 4, reps),
    "hellaswag-gguf-stock": lambda docs, reps: gguf_files.against_stock("Q4_0", "hellaswag", docs // 20, reps),
    "arc_easy-gguf-stock": lambda docs, reps: gguf_files.against_stock("Q4_0", "arc_easy", docs // 20, reps),
    "hellaswag-gguf-server": lambda docs, reps: gguf_files.against_server("Q4_0", "hellaswag", docs // 20, reps),
    "arc_easy-gguf-server": lambda docs, reps: gguf_files.against_server("Q4_0", "arc_easy", docs // 20, reps),
    "hellaswag-gguf-memory": lambda docs, reps: gguf_files.memory("Q4_1", "hellaswag", docs // 4),
    "scaling-docs-quarter": lambda docs, reps: loglikelihoods.scaling("arc_easy", 0, None, docs // 4, reps),
    "scaling-docs-half": lambda docs, reps: loglikelihoods.scaling("arc_easy", 0, None, docs // 2, reps),
    "scaling-docs-all": lambda docs, reps: loglikelihoods.scaling("arc_easy", 0, None, docs, reps),
    "scaling-shots-2": lambda docs, reps: loglikelihoods.scaling("arc_easy", 2, None, docs // 4, reps),
    "scaling-shots-4": lambda docs, reps: loglikelihoods.scaling("arc_easy", 4, None, docs // 4, reps),
    "scaling-shots-8": lambda docs, reps: loglikelihoods.scaling("arc_easy", 8, None, docs // 4, reps),
    "scaling-choices-1": lambda docs, reps: loglikelihoods.scaling("hellaswag", 0, 1, docs // 2, reps),
    "scaling-choices-2": lambda docs, reps: loglikelihoods.scaling("hellaswag", 0, 2, docs // 2, reps),
    "scaling-choices-4": lambda docs, reps: loglikelihoods.scaling("hellaswag", 0, 4, docs // 2, reps),
}


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(WORKS)), help="Work to measure.  [default: all]")
@click.option("--docs", default=200, show_default=True, help="Documents; long works take a half or a quarter.")
@click.option("--reps", default=3, show_default=True, help="Alternating repetitions; the median counts.")
@click.option("--output", type=click.Path(path_type=Path), default=OUTPUT, show_default=True)
@click.option("--list", "listing", is_flag=True, help="Print the names of the works.")
def main(only: tuple[str, ...], docs: int, reps: int, output: Path, listing: bool) -> None:
    """Measure speed and agreement against stock lm-eval, with SmolLM2-135M on this machine."""
    if listing:
        click.echo("\n".join(WORKS))
        return
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")
    heads = ("work", "peer", "ours s", "peer s", "ratio", "max |d|", "agree", "peak")
    click.echo(_line(heads))
    for work in only or _possible():
        row = row_of(work, WORKS[work](docs, reps), reps)
        shown = {**row, "seconds_ours": row["seconds_ours"][:-2], "seconds_peer": row["seconds_peer"][:-2]}
        click.echo(f"{_line([shown[column] for column in SHOWN])}  {row['note']}")
        record(output, row)


def _possible() -> list[str]:
    """The works that this environment can run."""
    missing = importlib.util.find_spec("llama_cpp") is None
    return [work for work in WORKS if not (missing and "gguf" in work)]


def _line(cells: Sequence[str]) -> str:
    widths = list(SHOWN.values())
    return "".join(
        f"{cell:<{width}}" if place < 2 else f"{cell:>{width}}"
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )


def row_of(work: str, outcome: Outcome, reps: int) -> dict[str, str]:
    """An outcome as a row of the CSV; what was not measured is empty."""
    import lm_eval
    import torch

    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    places = ".3f" if outcome.ours >= 0.1 else ".5f"
    fraction = outcome.operations and outcome.operations / outcome.ours / machine.peak(outcome.dtype)
    cells = (
        *(work, outcome.peer, outcome.dtype, str(outcome.documents), str(outcome.batch_size)),
        *(shown(outcome.ours, places), shown(outcome.theirs, places), shown(outcome.ratio, ".3f")),
        *(shown(outcome.difference, ".1e"), shown(outcome.agreement, ".1%"), shown(fraction, ".2f")),
        *(outcome.note, str(reps), machine.processor(), torch.__version__, lm_eval.__version__),
        datetime.date.today().isoformat(),
    )
    return dict(zip(FIELDS, cells, strict=True))


def record(output: Path, row: dict[str, str]) -> None:
    """Replaces the work's row in the CSV, or adds it."""
    rows = list(csv.DictReader(output.open(encoding="utf-8"))) if output.exists() else []
    kept = [old for old in rows if old["work"] != row["work"]]
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows([*kept, row])


if __name__ == "__main__":
    main()
