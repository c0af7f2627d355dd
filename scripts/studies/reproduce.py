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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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


Variant = tuple[str, float]
"""A method and a strength."""


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
    from aft_harness.training import extraction, recipe
    from aft_harness.training import train as training

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
    settings = replace(recipe.RECIPES["original"], layers=(layer,), seed=seed)
    boosters["AFT"] = training.train(lm, [learning], settings).booster
    return read_twice(lm, boosters, learning.train, test, development, on_stage)


def read_twice(
    lm: Any,
    boosters: Mapping[str, Any],
    early: Sequence[Any],
    test: Sequence[Any],
    development: Sequence[Any],
    on_stage: Callable[[str], None],
) -> list[Row]:
    """Both readings of each method: the best strength of the rows that are reported, and one picked elsewhere.

    Args:
        lm: The model.
        boosters: By method.
        early: Rows 0-199, on which the function vector was first reported.
        test: Rows 200-399.
        development: Rows that nothing else touches.
        on_stage: Told what comes next.
    """
    from aft_harness.training import extraction

    means, functions = extraction.MEAN_DIFFERENCE_STRENGTHS, extraction.FUNCTION_VECTOR_STRENGTHS
    mean, function, aft = boosters

    def compared(examples: Sequence[Any], *variants: Variant) -> dict[Variant, Any]:
        return compare_all(lm, examples, {(name, strength): boosters[name] for name, strength in variants})

    on_stage("picking strengths on development rows")
    elsewhere = compared(development, *((mean, each) for each in means), *((function, each) for each in functions))
    picked = {name: best({key: elsewhere[key] for key in elsewhere if key[0] == name}) for name in (mean, function)}
    on_stage("rows 0-199")
    first = compared(early, *((function, each) for each in functions))
    on_stage("rows 200-399")
    last = compared(test, *((mean, each) for each in means), picked[function], (aft, 1.0))
    rows = []
    for name, where, results in (
        (mean, "200-399", {key: last[key] for key in last if key[0] == mean}),
        (function, "0-199", first),
    ):
        biased, honest = best(results), picked[name]
        note = f"strength {honest[1]:g} picked on {len(development)} others"
        published = f"rows {where}, strength {biased[1]:g} picked on them"
        rows.append(Row(name, results[biased], published, last[honest], note))
    return [*rows, Row(aft, last[aft, 1.0], "rows 200-399", last[aft, 1.0], "nothing picked")]


def best(results: Mapping[Variant, Any]) -> Variant:
    """The variant with the largest change; the first of equals."""
    return max(results, key=lambda variant: results[variant].delta)


def rows_of(lm: Any) -> tuple[Any, list[Any], list[Any]]:
    """Examples to learn from (rows 0-199), to report on (rows 200-399), and to pick strengths by (training split)."""
    from aft_harness.harness.examples import Prompting, TaskSelection, load_tasks, task_examples
    from aft_harness.harness.suites import folder

    def drawn(rows: str, limit: int | None = None) -> Any:
        ((selection, task),) = load_tasks([TaskSelection(TASK, train_docs=rows, limit=limit)], [str(folder())])
        return task_examples(selection, task, Prompting(), lm)

    learning = drawn("train")
    test = drawn("test").train
    known = {example.document for example in (*learning.train, *test)}
    development = [one for one in drawn("development", DEVELOPMENT_ROWS + 20).train if one.document not in known]
    return learning, test, development[:DEVELOPMENT_ROWS]


def compare_all(lm: Any, examples: Sequence[Any], boosters: Mapping[Variant, Any]) -> dict[Variant, Any]:
    """Each variant against the unchanged model, question by question, in one pass."""
    from aft_harness.results.statistics import compare
    from aft_harness.training.answers import answers

    running = [variant for variant in boosters if variant[1]]  # at strength 0 the model is unchanged, bit for bit
    steerings = [None, *(lm.steering_for(boosters[variant], variant[1]) for variant in running)]
    baseline, *steered = [[bool(answer.right) for answer in given] for given in answers(lm, examples, steerings)]
    found = dict(zip(running, steered, strict=True))
    return {variant: compare(baseline, found.get(variant, baseline)) for variant in boosters}


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
    said = f"{lm.base_model.name}, {lm.model.dtype}, seed {seed}, {seconds:.0f} s\n\n{table(rows)}"
    click.echo(said)
    if output:
        output.write_text(said + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
