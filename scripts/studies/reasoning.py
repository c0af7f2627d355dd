"""Does learning from its own texts carry further than learning from solutions? The numbers of docs/reasoning.md.

    python scripts/studies/reasoning.py --work WORK --output leaderboards/reasoning

One booster an objective and a seed, from the same training documents of one generation task: `answer` learns the task's
solutions, `rejection` and `reward` texts that the model writes itself. Every booster is evaluated on the task, on what
it could carry to and on plain text (`leaderboard.csv`), and several texts a test document are drawn before and after
(`pass_at_k.csv`), with some of the likeliest side by side (`texts.csv`). Trainings, evaluations and samples that are
finished are kept in the work folder: rerun the same command to resume, also with more seeds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import pandas as pd

OBJECTIVES = ("answer", "rejection", "reward")
CARRIED = ("gsm8k_easy", "gsm8k_choice", "gsm8k_solution", "plain_text")
"""What is evaluated beside the task itself."""

SAMPLES = 8
SHOWN_AS = ("objective", "question", "text")
SHOWN = 5
"""Test documents whose likeliest texts are written down."""


def pass_at(right: int, count: int, k: int) -> float:
    """Chance that one of k texts is right, of which `right` of `count` were: M. Chen et al., 2021, arXiv 2107.03374."""
    return 1.0 - math.comb(count - right, k) / math.comb(count, k)


def plan_of(
    objective: str, task: str, model: str, documents: int, test: int, seeds: Sequence[int], changes: Mapping[str, Any]
) -> dict[str, Any]:
    """The transfer study of one objective."""
    from aft_harness.harness.suites import folder

    # The learning rate is that of learning from the model's texts.
    kept = {name: value for name, value in changes.items() if name == "epochs" or objective != "answer"}
    recipe = {"objective": objective, **kept}
    return {
        "models": [{"pretrained": model, "dtype": "bfloat16", "batch_size": 16}],
        "train": {task: {task: {"limit": documents}}},
        "evaluate": {each: {"limit": test} for each in dict.fromkeys((task, *CARRIED))},
        "seeds": list(seeds),
        "recipe": recipe,
        "include_path": [str(folder())],
    }


def sampled(lm: Any, booster: Any, task: Any, name: str, test: int, place: Path) -> dict[str, Any]:
    """Rewards of texts of the test documents under a booster, and the likeliest texts of the first; kept in a file."""
    from aft_harness.boosters.variant import Variant
    from aft_harness.harness.examples import Judging, examples_of
    from aft_harness.harness.generation_requests import Asked
    from aft_harness.harness.selection import TaskSelection
    from aft_harness.training.sampling import Sampler

    if place.is_file():
        return dict(json.loads(place.read_text(encoding="utf-8")))
    if booster is not None:
        lm = lm.with_variant(Variant("booster", booster))
    rows = TaskSelection(name, limit=None, train_docs=f"{task.config.test_split}[0:{test}]")
    examples = examples_of(rows, task, lm, judging=Judging())
    sampler, asked = Sampler(lm, [examples], 1.0), Asked(lm, task.config.generation_kwargs)
    drawn = sampler.sample(examples.train, 0, 0, SAMPLES)
    likeliest = sampler.greedy(examples.train[:SHOWN])
    found = {
        "documents": [example.document for example in examples.train],
        "rewards": [each.rewards for each in drawn],
        "texts": [
            [example.question, asked.text(lm, each.requests[0].continuation).strip()]
            for example, each in zip(examples.train, likeliest, strict=False)
        ],
    }
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(found), encoding="utf-8")
    return found


def row_of(name: str, seed: int | None, found: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `pass_at_k.csv`; the p-value pairs the documents' shares of right texts with the baseline's."""
    from aft_harness.results.statistics import sign_flip

    def right(of: Mapping[str, Any]) -> list[int]:
        return [round(sum(rewards)) for rewards in of["rewards"]]

    counts, before = right(found), right(baseline)
    differences = [(after - first) / SAMPLES for after, first in zip(counts, before, strict=True)]
    passes = {f"pass@{k}": sum(pass_at(c, SAMPLES, k) for c in counts) / len(counts) for k in (1, 2, 4, 8)}
    p_value = None if found is baseline else sign_flip(differences)
    return {"objective": name, "seed": seed, "n": len(counts), **passes, "p_value": p_value}


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for finished work.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for the tables.")
@click.option("--task", default="gsm8k_sums_gen", show_default=True, help="Generation task to learn.")
@click.option("--documents", default=300, show_default=True, help="Training documents.")
@click.option("--test", default=200, show_default=True, help="Test documents a task.")
@click.option("--objective", "objectives", multiple=True, default=OBJECTIVES, show_default=True)
@click.option("--seeds", default="0", show_default=True, help="Separated by commas.")
@click.option("--epochs", default=3, show_default=True)
@click.option("--lr", type=float, help="Learning rate of rejection and reward.  [default: the recipe's]")
@click.option("--model", help="Checkpoint.  [default: the embedded model]")
def main(
    work: Path,
    output: Path,
    task: str,
    documents: int,
    test: int,
    objectives: tuple[str, ...],
    seeds: str,
    epochs: int,
    lr: float | None,
    model: str | None,
) -> None:
    """Train by three objectives on equal documents, and evaluate what each carries to."""
    from aft_harness.api import evaluation as api
    from aft_harness.boosters.booster import Booster
    from aft_harness.demo import model_folder
    from aft_harness.harness.opening import opened
    from aft_harness.harness.suites import folder
    from aft_harness.harness.tasks import Tasks

    place, numbers = model or str(model_folder()), [int(seed) for seed in seeds.split(",")]
    output.mkdir(parents=True, exist_ok=True)
    changes = {"epochs": epochs, **({} if lr is None else {"lr": lr})}
    rows, texts = [], []
    for objective in objectives:
        click.echo(f"{objective}: training and evaluation", err=True)
        plan = plan_of(objective, task, place, documents, test, numbers, changes)
        api.transfer(plan, work / objective, output / "leaderboard.csv")
    loaded = Tasks([str(folder())]).leaves([task])[task]
    with opened(place, dtype="bfloat16", batch_size=16) as lm:
        baseline = sampled(lm, None, loaded, task, test, work / "samples" / f"{task}-{test}-unchanged.json")
        rows.append(row_of("unchanged model", None, baseline, baseline))
        texts += [
            {"objective": "unchanged model", "question": asked, "text": text} for asked, text in baseline["texts"]
        ]
        for objective in objectives:
            for path in sorted((work / objective / "boosters").glob(f"{task}-s*.safetensors")):
                booster = Booster.load(str(path))
                if booster.provenance.seed not in numbers:
                    continue
                name = f"{task}-{test}-{booster.sha256[:16]}.json"
                found = sampled(lm, booster, loaded, task, test, work / "samples" / name)
                rows.append(row_of(objective, booster.provenance.seed, found, baseline))
                texts += [dict(zip(SHOWN_AS, (objective, *pair), strict=True)) for pair in found["texts"]]
    pd.DataFrame(rows).to_csv(output / "pass_at_k.csv", index=False)
    pd.DataFrame(texts).to_csv(output / "texts.csv", index=False)
    click.echo(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
