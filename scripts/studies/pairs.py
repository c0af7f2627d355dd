"""What objectives on pairs do to a small model: the numbers of docs/pairs.md.

    python scripts/studies/pairs.py --output leaderboards/pairs

For each bundled set of pairs and each objective a booster is trained with three seeds. The objective is chosen on
development pairs (`development.csv`): by the share of texts, written greedily after their prompts, that show what the
pairs teach without repeating themselves (`shown`), and between equals by what plain text costs. What is reported is
measured on held-out pairs and the texts on their prompts (`smollm2-135m.csv`, `texts.csv`), and for the chosen
objective on ARC-Easy. Finished trainings are kept in the work folder: rerun the same command to resume.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pair_material as material
import pandas as pd

OBJECTIVES = ("answer", "choice", "both", "preference")
CHOSEN = "both"
SEEDS = (0, 1, 2)
TRAINING, DEVELOPMENT, HELD_OUT = 40, 30, 40
ARC_EASY = (400, 800)
"""Test rows that the default recipe was not developed on."""

NEW_TOKENS = 60
WORDS = 30
"""Concise texts have at most so many words; the unchanged model's are cut off at about twice as many."""

DISTINCT = 0.6
"""Of the runs of five characters of a text, so many differ unless it repeats itself."""

FORMAL_WORDS = re.compile(
    r"\b(enquir|inform|regard|note the following|hereby|kindly|sincerely|satisfactory|disposal|upon request|summari|"
    r"acknowledged|established sources|remarks|assistance|provided|concludes|pleased to|it should be)"
)
"""Beginnings of words that the formal texts are recognised by."""


def repeats_itself(text: str) -> bool:
    """Whether a text is a loop, as those of a model that is steered too far."""
    runs = [text[place : place + 5] for place in range(len(text) - 4)]
    return len(set(runs)) < DISTINCT * len(runs)


def is_concise(text: str) -> bool:
    """Whether a text has few words, and ends."""
    return 0 < len(text.split()) <= WORDS and not repeats_itself(text)


def is_formal(text: str) -> bool:
    """Whether a text has a word of the formal manner."""
    return bool(FORMAL_WORDS.search(text.lower())) and not repeats_itself(text)


SHOWS = {"concise": is_concise, "formal": is_formal}
"""By set, whether a text shows what its pairs teach."""


def settings_of(objective: str, seed: int) -> Any:
    """The default recipe with an objective and a seed."""
    from aft_harness.training.recipe import Settings

    return Settings(objective=objective, seed=seed)  # type: ignore[arg-type]


def trained(lm: Any, examples: Any, objective: str, seed: int, place: Path) -> tuple[Any, float]:
    """A booster of the work folder, or a new one, and the seconds of processor time that its training took."""
    from aft_harness.training.identity import trained_before, training_identity
    from aft_harness.training.train import train

    settings = settings_of(objective, seed)
    before = trained_before(place, training_identity(lm, [examples], settings)) if place.exists() else None
    if before is not None:
        return before, float("nan")
    start = time.process_time()
    result = train(lm, [examples], settings)
    result.booster.save(place)
    return result.booster, time.process_time() - start


def texts(lm: Any, variant: Any, prompts: Sequence[str]) -> list[str]:
    """What a variant writes after prompts, greedily."""
    from lm_eval.api.instance import Instance

    settings = {"until": [], "max_gen_toks": NEW_TOKENS, "do_sample": False}
    asked = [Instance("generate_until", {}, (prompt, settings), index) for index, prompt in enumerate(prompts)]
    return [text.strip() for text in lm.with_variant(variant).generate_until(asked, disable_tqdm=True)]


def development_rows(
    lm: Any, name: str, examples: Any, variants: Mapping[tuple[str, int], Any]
) -> Iterator[dict[str, Any]]:
    """What each booster does to development pairs, to texts on their prompts, and to plain text."""
    from aft_harness.boosters.variant import BASELINE
    from aft_harness.harness.evaluation import evaluate
    from aft_harness.harness.pair_task import Rendered, pair_task
    from aft_harness.harness.suites import folder
    from aft_harness.harness.tasks import Tasks

    source = Tasks([folder()])
    rendered = [
        Rendered(each.question, each.shown, continuations(lm, each), each.choices) for each in examples.development
    ]
    source.add(name, pair_task(name, examples.version, rendered))
    every = [BASELINE, *variants.values()]
    found = evaluate(lm, every, [name, "plain_text"], source=source)
    for (objective, seed), variant, result in zip([("unchanged", 0), *variants], every, found, strict=True):
        scores = result.results["results"]
        written = texts(lm, variant, [each.shown for each in examples.development])
        yield {
            "set": name,
            "objective": objective,
            "seed": seed,
            "n": len(rendered),
            **{metric: scores[name][f"{metric},none"] for metric in ("acc", "acc_norm", "margin")},
            "shown": sum(map(SHOWS[name], written)) / len(written),
            "repeats": sum(map(repeats_itself, written)) / len(written),
            "words": sum(len(text.split()) for text in written) / len(written),
            "bits_per_byte": scores["plain_text"]["bits_per_byte,none"],
        }


def continuations(lm: Any, example: Any) -> tuple[str, ...]:
    """The texts of an example with what ends them, as the model reads them."""
    return tuple(f"{text}{lm.tokenizer.eos_token}" for text in example.choices)


def text_rows(lm: Any, name: str, task: Any, variants: Mapping[tuple[str, int], Any]) -> Iterator[dict[str, Any]]:
    """How the texts of each booster on held-out prompts differ from those of the unchanged model."""
    from aft_harness.boosters.variant import BASELINE
    from aft_harness.results.statistics import compare

    prompts = [str(doc["context"]) for doc in task.eval_docs]
    measures: dict[str, Callable[[str], float]] = {
        "shown": SHOWS[name],
        "repeats": repeats_itself,
        "words": lambda text: len(text.split()),
    }
    plain = texts(lm, BASELINE, prompts)
    for (objective, seed), variant in variants.items():
        steered = texts(lm, variant, prompts)
        for measure, function in measures.items():
            paired = compare([float(function(text)) for text in plain], [float(function(text)) for text in steered])
            numbers = ("n", "baseline", "steered", "ci_low", "ci_high", "gained", "lost", "p_value")
            found = {column: getattr(paired, column) for column in numbers}
            yield {"set": name, "objective": objective, "seed": seed, "measure": measure, **found}


@click.command()
@click.option("--model", help="Hub id or folder.  [default: the demo model SmolLM2-135M-Instruct]")
@click.option("--dtype", default="bfloat16", show_default=True, help="Of the model's weights.")
@click.option("--work", type=click.Path(path_type=Path), default="pairs-work", show_default=True, help="Boosters.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for tables.")
def main(model: str | None, dtype: str, work: Path, output: Path) -> None:
    """Compare objectives on pairs: choose on development pairs, report on held-out ones."""
    from aft_harness.cli.terminal import quiet
    from aft_harness.errors import AftError

    os.environ.setdefault("TQDM_DISABLE", "1")
    work.mkdir(parents=True, exist_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    try:
        with quiet():
            run(model, dtype, work, output)
    except AftError as error:
        raise click.ClickException(str(error)) from None


def run(model: str | None, dtype: str, work: Path, output: Path) -> None:
    """Trains, measures and writes the tables."""
    from aft_harness.boosters.variant import BASELINE, Variant
    from aft_harness.demo import model_folder
    from aft_harness.files import write_atomically
    from aft_harness.harness.evaluation import evaluate
    from aft_harness.harness.model import SteeredHFLM
    from aft_harness.harness.pair_examples import draw_pairs
    from aft_harness.harness.pair_sources import read
    from aft_harness.harness.score_store import ScoreStore
    from aft_harness.harness.selection import PairSelection
    from aft_harness.harness.suites import folder
    from aft_harness.harness.tasks import Tasks
    from aft_harness.results import leaderboard
    from aft_harness.results.runs import rows
    from aft_harness.slices import Slice

    lm = SteeredHFLM(model or str(model_folder()), dtype=dtype, softmax_dtype="float32", batch_size=16)
    sets = {}
    for path in (material.CONCISE, material.FORMAL):
        selection = PairSelection(path, limit=TRAINING, dev_docs=DEVELOPMENT, held_out=HELD_OUT)
        drawn = draw_pairs(read(path), selection, lm)
        sets[drawn.examples.task] = drawn

    variants: dict[str, dict[tuple[str, int], Variant]] = {name: {} for name in sets}
    for seed in SEEDS:
        for name, drawn in sets.items():
            for objective in OBJECTIVES:
                place = work / f"{name}-{objective}-{seed}.safetensors"
                examples = replace(drawn.examples, development=[])
                booster, seconds = trained(lm, examples, objective, seed, place)
                click.echo(f"{name}, {objective}, seed {seed}: {seconds:.0f} s", err=True)
                variants[name][objective, seed] = Variant(f"{name} {objective} {seed}", booster)

    development = pd.DataFrame(
        [row for name, drawn in sets.items() for row in development_rows(lm, name, drawn.examples, variants[name])]
    )
    write_atomically(output / "development.csv", development.to_csv(index=False).encode())
    click.echo(development.groupby(["set", "objective"]).mean(numeric_only=True).to_string())

    with ScoreStore(work / "scores.sqlite") as store:
        for name, drawn in sets.items():
            source = Tasks([folder()])
            source.add(name, drawn.held_out)
            for objective in OBJECTIVES:
                asked: list[tuple[list[str], Slice | None]] = [([name, "plain_text"], None)]
                if objective == CHOSEN:
                    asked.append((["arc_easy"], Slice(*ARC_EASY)))
                every = [BASELINE, *(variants[name][objective, seed] for seed in SEEDS)]
                for tasks, docs in asked:
                    found = evaluate(lm, every, tasks, source=source, docs=docs, store=store)
                    # Of one name, so that the seeds are pooled.
                    runs = [replace(each.run, name=f"{name} {objective}") for each in found]
                    leaderboard.add(output / "smollm2-135m.csv", rows(runs))
    written = [row for name, drawn in sets.items() for row in text_rows(lm, name, drawn.held_out, variants[name])]
    write_atomically(output / "texts.csv", pd.DataFrame(written).to_csv(index=False).encode())


if __name__ == "__main__":
    main()
