"""What does a booster change? Loglikelihoods of right and wrong choices, with their question and without it.

    python scripts/studies/anatomy.py --vector smollm2-135m-arc-easy --output leaderboards/transfer/anatomy.csv

No task evaluates the documents: by default they are ARC-Easy's validation split, and rows of CommonsenseQA's training
split, which the booster of ARC-Easy never saw. "Without its question" a choice follows the last line of the prompt
alone (`Answer:`), or nothing where the prompt is one line. The difference between the two loglikelihoods is what the
question says of the choice (A. Holtzman et al., Surface Form Competition, EMNLP 2021, arXiv 2104.08315).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aft_harness.boosters.variant import Variant
    from aft_harness.engine.scoring import Request
    from aft_harness.harness.examples import Example

ROWS = {
    "arc_easy_question": "validation",
    "arc_easy_stem": "validation",
    "commonsense_qa_question": "train",
    "commonsense_qa_stem": "train",
}
"""Tasks, and rows that nothing evaluates."""

UNITS = {
    "right choice": "nats",
    "wrong choices": "nats",
    "margin": "nats",
    "right choice without its question": "nats",
    "wrong choices without their question": "nats",
    "margin without the question": "nats",
    "margin that the question makes": "nats",
    "right choice, per token": "nats",
    "wrong choices, per token": "nats",
    "entropy over the choices": "nats",
    "entropy of the next token": "nats",
    "length of the chosen over the mean choice": "ratio",
    "acc": "share",
    "acc by what the question says": "share",
}
"""What is measured of each document. A margin is the right choice's over the mean of the wrong ones."""


def examples_of(lm: Any, task: str, rows: str, limit: int) -> list[Example]:
    """Documents of a task with choices, from rows that it does not evaluate."""
    from aft_harness.harness.examples import draw
    from aft_harness.harness.selection import TaskSelection
    from aft_harness.harness.suites import folder
    from aft_harness.harness.tasks import Tasks

    every = TaskSelection(task, train_docs=rows, dev_docs=limit, development_only=True)
    (found,) = draw([every], lm, source=Tasks([folder()]))
    return found.development


def cue(prompt: str) -> str:
    """The last line of a prompt of several: what announces the answer, without the question."""
    return prompt.rsplit("\n", 1)[1] if "\n" in prompt else ""


def scored(
    lm: Any, examples: Sequence[Example], variants: Sequence[Variant]
) -> list[list[tuple[NDArray[np.float64], NDArray[np.float64]]]]:
    """By variant and document, loglikelihoods of all choices with the question, and without it."""
    from aft_harness.boosters.variant import BASELINE

    asked: list[Request] = []
    alone: list[Request] = []
    for example in examples:
        texts = [lm.tok_decode(list(request.continuation)) for request in example.requests]
        prompt = lm.tok_decode(list(example.requests[0].context))
        asked += example.requests
        alone += [lm.encode(cue(prompt), text if cue(prompt) else text.lstrip()) for text in texts]
    counts = np.cumsum([len(example.requests) for example in examples])[:-1]
    found = []
    for results in lm.score_variants([*asked, *alone], [BASELINE, *variants]):
        scores = np.array([score for score, _ in results])
        parts = (np.split(half, counts) for half in np.split(scores, 2))
        found.append(list(zip(*parts, strict=True)))
    return found


def next_token_entropies(lm: Any, examples: Sequence[Example], variant: Variant) -> list[float]:
    """Entropy of the first token of an answer, by document, in nats."""
    import torch

    from aft_harness.engine.scoring import Request
    from aft_harness.engine.steering import Steering
    from aft_harness.training.prepared import PreparedExamples

    first = [[Request(each.requests[0].context, each.requests[0].continuation[:1])] for each in examples]
    found: list[float] = []
    with torch.no_grad():
        prepared = PreparedExamples(lm.engine, first)
        with Steering(lm.model, variant.booster) if variant.booster else nullcontext():
            for chunk in prepared.chunks(range(len(examples))):
                for logits in prepared.predictions(chunk):
                    found.append(float(torch.distributions.Categorical(logits=logits[0].float()).entropy()))
    return found


def measures(
    example: Example, asked: NDArray[np.float64], alone: NDArray[np.float64], entropy: float
) -> dict[str, float]:
    """Everything in `UNITS` of one document under one variant.

    Args:
        example: The document.
        asked: Loglikelihoods of its choices.
        alone: Those without the question.
        entropy: Of the next token.
    """
    right = np.isin(np.arange(len(asked)), example.gold)
    tokens = np.array([len(request.continuation) for request in example.requests])
    characters = np.array([len(choice) for choice in example.choices])
    shares = np.exp(asked - np.logaddexp.reduce(asked))

    def margin(scores: NDArray[np.float64]) -> float:
        return float(scores[right].mean() - scores[~right].mean())

    return {
        "right choice": asked[right].mean(),
        "wrong choices": asked[~right].mean(),
        "margin": margin(asked),
        "right choice without its question": alone[right].mean(),
        "wrong choices without their question": alone[~right].mean(),
        "margin without the question": margin(alone),
        "margin that the question makes": margin(asked - alone),
        "right choice, per token": (asked / tokens)[right].mean(),
        "wrong choices, per token": (asked / tokens)[~right].mean(),
        "entropy over the choices": float(-(shares * np.log(np.maximum(shares, 1e-30))).sum()),
        "entropy of the next token": entropy,
        "length of the chosen over the mean choice": characters[asked.argmax()] / characters.mean(),
        "acc": float(right[asked.argmax()]),
        "acc by what the question says": float(right[(asked - alone).argmax()]),
    }


def rows_of(lm: Any, task: str, rows: str, limit: int, variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """The table's rows of one task."""
    from aft_harness.boosters.variant import BASELINE
    from aft_harness.results.statistics import paired_interval, sign_flip

    examples = examples_of(lm, task, rows, limit)
    tables = []
    for variant, scores in zip([BASELINE, *variants], scored(lm, examples, variants), strict=True):
        entropies = next_token_entropies(lm, examples, variant)
        every = zip(examples, scores, entropies, strict=True)
        tables.append(pd.DataFrame([measures(example, *pair, entropy) for example, pair, entropy in every]))
    found = []
    for variant, table in zip(variants, tables[1:], strict=True):
        for name, unit in UNITS.items():
            differences = (table[name] - tables[0][name]).to_numpy()
            low, high = paired_interval(differences, fractions=unit == "share")
            found.append(
                {
                    "booster": variant.name,
                    "task": task,
                    "rows": rows,
                    "n": len(examples),
                    "quantity": name,
                    "unit": unit,
                    "without": tables[0][name].mean(),
                    "with": table[name].mean(),
                    "change": differences.mean(),
                    "ci_low": low,
                    "ci_high": high,
                    "p_value": sign_flip(differences),
                }
            )
    return found


@click.command()
@click.option("--vector", "vectors", multiple=True, required=True, help="Booster, as in vector=; may be repeated.")
@click.option("--task", "tasks", multiple=True, help="TASK=SPLIT[a:b]; may be repeated.  [default: four]")
@click.option("--limit", type=int, default=400, show_default=True, help="Documents of a task.")
@click.option("--model", help="Hub id or folder.  [default: the demo model SmolLM2-135M-Instruct]")
@click.option("--dtype", default="bfloat16", show_default=True, help="Of the model's weights.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The table, a CSV file.")
def main(
    vectors: tuple[str, ...], tasks: tuple[str, ...], limit: int, model: str | None, dtype: str, output: Path
) -> None:
    """Measure what boosters change in how a model answers."""
    from aft_harness.cli.terminal import quiet
    from aft_harness.errors import AftError

    os.environ.setdefault("TQDM_DISABLE", "1")
    wanted = dict(each.split("=", 1) for each in tasks) or ROWS
    try:
        with quiet():
            from aft_harness.boosters import references
            from aft_harness.demo import model_folder
            from aft_harness.files import write_atomically
            from aft_harness.harness.model import SteeredHFLM

            lm = SteeredHFLM(model or str(model_folder()), dtype=dtype, softmax_dtype="float32", batch_size=16)
            variants = [references.load(vector) for vector in vectors]
            found = [row for task, rows in wanted.items() for row in rows_of(lm, task, rows, limit, variants)]
    except AftError as error:
        raise click.ClickException(str(error)) from None
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, pd.DataFrame(found).to_csv(index=False).encode())
    for row in found:
        interval = f"[{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
        click.echo(
            f"{row['booster']} {row['task']} {row['quantity']}: {row['without']:.3f} {row['change']:+.3f} {interval}"
        )


if __name__ == "__main__":
    main()
