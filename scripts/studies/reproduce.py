"""Repeats the experiment that Activation Fine-Tuning was first published with, and reads it twice.

The protocol: HellaSwag as lettered questions, rows 0-199 of the validation split to learn from, rows 200-399 to report
on; layer 16 (or the middle one), Adam at 1e-2, 5 epochs, gradients accumulated over 4 questions. Three methods: the
mean difference of activations, the function vector of reasoning prompts, and AFT.

*As published* picks the best strength of the two heuristics on the very rows it reports (the function vector's rows are
0-199 there): such a number is biased upwards. *Honest* picks the strength on rows of HellaSwag's training split, which
nothing else touches, and reports on rows 200-399. AFT has no strength to pick.

    python scripts/studies/reproduce.py                                 # the demo model SmolLM2-135M-Instruct
    python scripts/studies/reproduce.py --model microsoft/phi-2         # as published; wants a GPU
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from aft_harness.boosters.booster import Booster
    from aft_harness.boosters.variant import Variant
    from aft_harness.harness.examples import Example, TaskExamples
    from aft_harness.results.statistics import Paired

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
    published: Paired
    published_note: str
    honest: Paired
    honest_note: str


def reproduce(lm: Any, seed: int, on_stage: Callable[[str], None]) -> list[Row]:
    """Runs the three methods and returns the table's rows."""
    from aft_harness.training import extraction
    from aft_harness.training.recipe import RECIPES
    from aft_harness.training.train import train

    on_stage("rows")
    learning, test, development = rows_of(lm)
    count = len(lm.engine.layers)
    layer = 16 if count > 32 else count // 2
    on_stage("mean difference and function vector")
    boosters = {
        "mean difference": extraction.mean_difference(lm, learning, layer),
        "function vector": extraction.function_vector(lm),
    }
    on_stage("AFT, 5 epochs")
    boosters["AFT"] = train(lm, [learning], replace(RECIPES["original"], layers=layer, seed=seed)).booster
    return read_twice(lm, boosters, learning.train, test, development, on_stage)


def read_twice(
    lm: Any,
    boosters: Mapping[str, Booster],
    early: Sequence[Example],
    test: Sequence[Example],
    development: Sequence[Example],
    on_stage: Callable[[str], None],
) -> list[Row]:
    """Both readings of each method: the best strength of the rows that are reported, and one picked elsewhere.

    Args:
        lm: The model.
        boosters: By method: the mean difference, the function vector and AFT, in this order.
        early: Rows 0-199, on which the function vector was first reported.
        test: Rows 200-399.
        development: Rows that nothing else touches.
        on_stage: Called with what comes next.
    """
    from aft_harness.boosters.variant import Variant
    from aft_harness.training import extraction

    mean, function, aft = boosters
    means = [Variant(mean, boosters[mean], each) for each in extraction.MEAN_DIFFERENCE_STRENGTHS]
    functions = [Variant(function, boosters[function], each) for each in extraction.FUNCTION_VECTOR_STRENGTHS]
    trained = Variant(aft, boosters[aft])

    on_stage("picking strengths on development rows")
    elsewhere = compare_all(lm, development, [*means, *functions])
    picked_mean, picked_function = best(elsewhere, means), best(elsewhere, functions)
    on_stage("rows 0-199")
    first = compare_all(lm, early, functions)
    on_stage("rows 200-399")
    last = compare_all(lm, test, [*means, picked_function, trained])
    readings = (
        ("200-399", last, best(last, means), picked_mean),
        ("0-199", first, best(first, functions), picked_function),
    )
    rows = []
    for where, found, biased, honest in readings:
        published = f"rows {where}, strength {biased.strength:g} picked on them"
        note = f"strength {honest.strength:g} picked on {len(development)} others"
        rows.append(Row(biased.name, found[biased], published, last[honest], note))
    return [*rows, Row(aft, last[trained], "rows 200-399", last[trained], "nothing picked")]


def best(results: Mapping[Variant, Paired], variants: Sequence[Variant]) -> Variant:
    """The variant with the largest change; the first of equals."""
    return max(variants, key=lambda variant: results[variant].delta)


def rows_of(lm: Any) -> tuple[TaskExamples, list[Example], list[Example]]:
    """Examples to learn from (rows 0-199), to report on (rows 200-399), and to pick strengths by (training split)."""
    from aft_harness.harness.examples import draw
    from aft_harness.harness.selection import TaskSelection
    from aft_harness.harness.suites import folder
    from aft_harness.harness.tasks import Tasks

    limits = {"train": None, "test": None, "development": DEVELOPMENT_ROWS + 20}
    source = Tasks([folder()])
    learning, test, others = (
        draw([TaskSelection(TASK, train_docs=split, limit=limit)], lm, source=source)[0]
        for split, limit in limits.items()
    )
    known = {example.document for example in (*learning.train, *test.train)}
    development = [example for example in others.train if example.document not in known]
    return learning, test.train, development[:DEVELOPMENT_ROWS]


def compare_all(lm: Any, examples: Sequence[Example], variants: Sequence[Variant]) -> dict[Variant, Paired]:
    """Each variant against the unchanged model, question by question, in one pass."""
    from aft_harness.boosters.variant import BASELINE
    from aft_harness.results.statistics import compare
    from aft_harness.training.development import outcomes
    from aft_harness.training.objective import TaskObjective

    running = [variant for variant in variants if variant.strength]  # at strength 0 the model is unchanged, bit for bit
    objectives = {example.task: TaskObjective("choice") for example in examples}
    graded = outcomes(lm, examples, objectives, [BASELINE, *running])
    baseline, *steered = [[bool(outcome.right) for outcome in each] for each in graded]
    right = dict(zip(running, steered, strict=True))
    return {variant: compare(baseline, right.get(variant, baseline)) for variant in variants}


def table(rows: Sequence[Row]) -> str:
    """The table as text."""

    def reading(paired: Paired) -> str:
        return (
            f"{paired.baseline:.1%} -> {paired.steered:.1%} ({100 * paired.delta:+.1f} "
            f"[{100 * paired.ci_low:+.1f}, {100 * paired.ci_high:+.1f}], n = {paired.n}, p = {paired.p_value:.2g})"
        )

    head = ("method", "published, Phi-2", "as published (biased)", "honest")
    first = rows[-1].honest
    cells = [("baseline", PUBLISHED["baseline"], f"{first.baseline:.1%}", f"{first.baseline:.1%} (n = {first.n})")]
    for row in rows:
        cells.append((row.method, PUBLISHED[row.method], reading(row.published), reading(row.honest)))
        cells.append(("", "", row.published_note, row.honest_note))
    widths = [max(len(line[column]) for line in [head, *cells]) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [head, *cells]]
    return "\n".join(line.rstrip() for line in lines)


@click.command()
@click.option("--model", help="Hub id or folder.  [default: the demo model SmolLM2-135M-Instruct]")
@click.option("--dtype", default="auto", show_default=True, help="auto: bfloat16 for the demo model.")
@click.option("--device", help="cpu, cuda, mps.  [default: a GPU if there is one]")
@click.option("--batch-size", default=16, show_default=True, help="Rows per forward pass.")
@click.option("--seed", default=0, show_default=True, help="Order of the questions in training.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="File for the table.")
def main(model: str | None, dtype: str, device: str | None, batch_size: int, seed: int, output: Path | None) -> None:
    """Run baseline, mean difference, function vector and AFT under the original protocol, and print the table."""
    from aft_harness.cli.terminal import quiet
    from aft_harness.errors import AftError

    os.environ.setdefault("TQDM_DISABLE", "1")
    if output and not output.parent.is_dir():
        raise click.BadParameter(f"{output.parent} is not a folder", param_hint="--output")
    try:
        start = time.perf_counter()
        with quiet():
            from aft_harness.demo import model_folder
            from aft_harness.harness.model import SteeredHFLM

            dtype = "bfloat16" if dtype == "auto" and model is None else dtype
            lm = SteeredHFLM(
                model or str(model_folder()), dtype=dtype, device=device, batch_size=batch_size, softmax_dtype="float32"
            )
            rows = reproduce(
                lm, seed, lambda stage: click.echo(f"{time.perf_counter() - start:6.1f} s  {stage}", err=True)
            )
            seconds = time.perf_counter() - start
    except AftError as error:
        raise click.ClickException(str(error)) from None
    text = f"{lm.base_model.name}, {lm.model.dtype}, seed {seed}, {seconds:.0f} s\n\n{table(rows)}"
    click.echo(text)
    if output:
        output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
