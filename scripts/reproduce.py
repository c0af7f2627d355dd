"""Repeats the experiment that Activation Fine-Tuning was first published with, and reads it twice.

The protocol: HellaSwag as lettered questions, rows 0-199 of the validation split to learn from, rows 200-399 to report
on; layer 16 (or the middle one), Adam at 1e-2, 5 epochs, gradients accumulated over 4 questions. Three methods: the
mean difference of activations, the function vector of reasoning prompts, and AFT.

*As published* picks the best strength of the two heuristics on the very rows it reports (the function vector's rows are
0-199 there): such a number is biased upwards. *Honest* picks the strength on rows of HellaSwag's training split, which
nothing else touches, and reports on rows 200-399. AFT has no strength to pick.

    python scripts/reproduce.py                                 # the embedded SmolLM2-135M-Instruct
    python scripts/reproduce.py --model microsoft/phi-2         # as published; wants a GPU
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

TASK = "aft_hellaswag_letter"
DEVELOPMENT_ROWS = 100
PUBLISHED = {
    "baseline": "43.5%",
    "mean difference": "about +0",
    "function vector": "about +0",
    "AFT": "45.0% (+1.5)",
}
"""Phi-2, 200 test questions, as first reported."""


@dataclass(frozen=True)
class Row:
    """A method's two readings: accuracy, change and test, on which rows, at which strength."""

    method: str
    published: Any
    published_note: str
    honest: Any
    honest_note: str


def reproduce(lm: Any, seed: int, on_stage: Callable[[str], None]) -> list[Row]:
    """Runs the three methods and returns the table's rows."""
    from aft_harness import extraction, training

    on_stage("baseline")
    learning, test, development = rows_of(lm)
    layer = 16 if len(lm.engine.layers) > 32 else len(lm.engine.layers) // 2
    on_stage("mean difference")
    mean = extraction.mean_difference(lm, learning, layer)
    rows = [
        heuristic(lm, "mean difference", mean, extraction.MEAN_DIFFERENCE_STRENGTHS, test, test, development),
    ]
    on_stage("function vector")
    function = extraction.function_vector(lm, layer=min(16, len(lm.engine.layers) - 1))
    strengths = extraction.FUNCTION_VECTOR_STRENGTHS
    rows.append(heuristic(lm, "function vector", function, strengths, learning.train, test, development))
    on_stage("AFT")
    settings = training.Settings(layers=(layer,), objective="answer", lr=1e-2, epochs=5, batch_size=4, seed=seed)
    trained = training.train(lm, [learning], settings)
    paired = compared(lm, test, [(trained.booster, 1.0)])[0]
    rows.append(Row("AFT", paired, "rows 200-399", paired, "nothing picked"))
    return rows


def rows_of(lm: Any) -> tuple[Any, list[Any], list[Any]]:
    """Examples to learn from (rows 0-199), to report on (rows 200-399), and to pick strengths by (training split)."""
    from dataclasses import replace

    from aft_harness.examples import Prompting, TaskSelection, load_tasks, task_examples
    from aft_harness.task_folder import folder

    def drawn(rows: str, limit: int | None = None) -> Any:
        ((selection, task),) = load_tasks([TaskSelection(TASK, train_docs=rows, limit=limit)], [str(folder())])
        return task_examples(selection, task, Prompting(), lm)

    learning = drawn("train")
    test = drawn("test").train
    known = {example.document for example in (*learning.train, *test)}
    development = [one for one in drawn("development", DEVELOPMENT_ROWS + 20).train if one.document not in known]
    return replace(learning, development=[]), test, development[:DEVELOPMENT_ROWS]


def heuristic(
    lm: Any,
    method: str,
    booster: Any,
    strengths: Sequence[float],
    published: Sequence[Any],
    test: Sequence[Any],
    development: Sequence[Any],
) -> Row:
    """Picks the strength on the rows that are reported, and on development rows."""
    variants = [(booster, strength) for strength in strengths]
    best = max(zip(strengths, compared(lm, published, variants), strict=True), key=lambda pair: pair[1].delta)
    chosen = max(zip(variants, compared(lm, development, variants), strict=True), key=lambda pair: pair[1].delta)[0]
    (honest,) = compared(lm, test, [chosen])
    rows = "200-399" if published is test else "0-199"
    note = f"rows {rows}, strength {best[0]:g} picked on them"
    return Row(method, best[1], note, honest, f"strength {chosen[1]:g} picked on {len(development)} others")


def compared(lm: Any, examples: Sequence[Any], variants: Sequence[tuple[Any, float]]) -> list[Any]:
    """Each variant against the unchanged model, question by question."""
    from aft_harness.answers import answers
    from aft_harness.statistics import compare

    steerings = [None, *(lm.steering_for(booster, strength) for booster, strength in variants)]
    baseline, *steered = [[bool(answer.right) for answer in given] for given in answers(lm, examples, steerings)]
    return [compare(baseline, right) for right in steered]


def table(rows: Sequence[Row]) -> str:
    """The table as text."""

    def said(paired: Any) -> str:
        return (
            f"{paired.baseline:.1%} -> {paired.steered:.1%} ({100 * paired.delta:+.1f} "
            f"[{100 * paired.ci_low:+.1f}, {100 * paired.ci_high:+.1f}], n = {paired.n}, p = {paired.p_value:.2g})"
        )

    head = ("method", "published, Phi-2", "as published (biased)", "honest")
    first = rows[-1].honest
    cells = [("baseline", PUBLISHED["baseline"], f"{first.baseline:.1%}", f"{first.baseline:.1%} (n = {first.n})")]
    for row in rows:
        cells.append((row.method, PUBLISHED[row.method], said(row.published), said(row.honest)))
        cells.append(("", "", row.published_note, row.honest_note))
    widths = [max(len(line[column]) for line in [head, *cells]) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [head, *cells]]
    return "\n".join(line.rstrip() for line in lines)


@contextmanager
def _timed() -> Iterator[Callable[[], float]]:
    start = time.perf_counter()
    yield lambda: time.perf_counter() - start


@click.command()
@click.option("--model", help="Hub id or folder.  [default: the embedded SmolLM2-135M-Instruct]")
@click.option("--dtype", default="auto", show_default=True, help="auto: bfloat16 for the embedded model.")
@click.option("--device", help="cpu, cuda, mps.  [default: a GPU if there is one]")
@click.option("--batch-size", default=16, show_default=True, help="Rows a pass.")
@click.option("--seed", default=0, show_default=True, help="Order of the questions in training.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="File for the table.")
def main(model: str | None, dtype: str, device: str | None, batch_size: int, seed: int, output: Path | None) -> None:
    """Run baseline, mean difference, function vector and AFT under the original protocol, and print the table."""
    from aft_harness.cli.terminal import quiet
    from aft_harness.errors import AftError

    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        with quiet(), _timed() as elapsed:
            from aft_harness.demo import model_folder
            from aft_harness.lm import SteeredHFLM

            dtype = "bfloat16" if dtype == "auto" and model is None else dtype
            lm = SteeredHFLM(
                model or str(model_folder()), dtype=dtype, device=device, batch_size=batch_size, softmax_dtype="float32"
            )
            rows = reproduce(lm, seed, lambda stage: click.echo(f"{elapsed():6.1f} s  {stage}", err=True))
            seconds = elapsed()
    except AftError as error:
        raise click.ClickException(str(error)) from None
    said = f"{lm.base_model.name}, {lm.model.dtype}, seed {seed}, {seconds:.0f} s\n\n{table(rows)}"
    click.echo(said)
    if output:
        output.write_text(said + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
