"""Tries settings of training one after another and says how each does on development documents.

What the defaults of `aft-train` rest on: docs/log.md tells what was tried, this makes its numbers.

    python scripts/explore.py scripts/explore/arc_easy.yaml --output leaderboards/recipe/arc_easy.csv

A study is a YAML file: `task`, `limit` (training documents), `dev_docs` (carved from the same rows) or `development`
(rows of a split that nothing evaluates, as `SPLIT[a:b]`), `base` (fields of `recipe.Settings`) and `runs` (a name, and
the fields that differ; `limit` may differ too, and `start: mean-difference` starts from that direction at the middle
layer). No test document is touched, and development documents are measured
once, after the last epoch. Runs that the table holds are not repeated: they are known by everything that a training
depends on, not by name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from statistics import mean
from typing import Any

import click
import pandas as pd
import yaml


def settings_of(study: Mapping[str, Any], run: Mapping[str, Any]) -> Any:
    """The settings of one run of a study."""
    from aft_harness.training.recipe import Settings

    known = {field.name for field in fields(Settings)}
    values = {name: value for name, value in {**study.get("base", {}), **run}.items() if name in known}
    if isinstance(values.get("layers"), list):
        values["layers"] = tuple(values["layers"])
    if unknown := set(run) - known - {"name", "limit", "start"} | set(study.get("base", {})) - known:
        raise click.ClickException(f"{run.get('name')}: unknown settings {', '.join(sorted(unknown))}")
    return Settings(**values)


def examples_of(study: Mapping[str, Any], limit: int, lm: Any) -> Any:
    """Training and development examples of a study."""
    from aft_harness.harness.examples import Prompting, TaskSelection, load_tasks, task_examples
    from aft_harness.harness.suites import folder

    def drawn(selection: TaskSelection) -> Any:
        ((chosen, task),) = load_tasks([selection], [str(folder())])
        return task_examples(chosen, task, Prompting(), lm)

    carved = 0 if "development" in study else int(study["dev_docs"])
    found = drawn(TaskSelection(study["task"], limit=limit, dev_docs=carved))
    if "development" in study:
        rows = study["development"]
        own = drawn(TaskSelection(study["task"], train_docs=rows, dev_docs=10**6, development_only=True)).development
        known = {example.document for example in found.train}
        found = replace(found, development=[example for example in own if example.document not in known])
    return found


def trained(lm: Any, study: Mapping[str, Any], table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """A row for each run that the table does not hold."""
    from aft_harness.training import extraction
    from aft_harness.training import train as training

    if not len(table):
        task = examples_of(study, 1, lm)
        yield {"task": study["task"], "run": "unchanged model", **_measured(lm, task.development, None)}
    for run in study["runs"]:
        settings = settings_of(study, run)
        task = examples_of(study, int(run.get("limit", study["limit"])), lm)
        start = extraction.mean_difference(lm, task) if run.get("start") == "mean-difference" else None
        identity = training.training_identity(lm, [task], settings, start)
        if len(table) and identity in set(table["training_sha256"]):
            continue
        click.echo(f"{run['name']} ...", err=True)
        done = training.train(lm, [replace(task, development=[])], settings, start=start)
        told = {name: value for name, value in asdict(settings).items() if name != "split_seed"}
        yield {
            "task": study["task"],
            "run": run["name"],
            **told,
            "objective": done.booster.provenance["objective"],
            "layers": settings.layers if settings.layers == "all" else " ".join(map(str, done.booster.layers)),
            "n_train": len(task.train),
            **_measured(lm, task.development, done.booster),
            "epoch_losses": " ".join(f"{loss:.4f}" for loss in done.epoch_losses),
            "relative_norm": max(done.relative_norm.values()),
            "parameters": done.booster.parameters,
            "seconds": round(done.seconds, 1),
            "training_sha256": identity,
        }


def _measured(lm: Any, examples: Sequence[Any], booster: Any) -> dict[str, float]:
    """What is compared: accuracy by sum and by length-normalised sum, the loss of either; perplexity of plain text."""
    import torch
    from comparison.exams import passages, perplexity

    from aft_harness.harness.examples import graded
    from aft_harness.training.recipe import ChoiceNorm

    def score(requests: Sequence[Any]) -> list[float]:
        return [found for found, _ in lm.score_variants(list(requests), [lm.steering_for(booster)])[0]]

    sums = iter(score([request for example in examples for request in example.requests]))
    scores = [torch.tensor([next(sums) for _ in example.requests], dtype=torch.float64) for example in examples]
    found: dict[str, float] = {"development_n": len(examples)}
    norms: dict[str, ChoiceNorm] = {"": "none", "_norm": "characters"}
    for suffix, norm in norms.items():
        own = [graded(example, part, norm) for example, part in zip(examples, scores, strict=True)]
        found[f"acc{suffix}"] = mean(right for _, right in own)
        found[f"loss{suffix}"] = mean(float(loss) for loss, _ in own)
    found["perplexity"] = perplexity(score, passages(lm))
    return found


@click.command()
@click.argument("study", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--model", help="Hub id or folder.  [default: the embedded SmolLM2-135M-Instruct]")
@click.option("--dtype", default="bfloat16", show_default=True, help="Of the model's weights.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The table, a CSV file.")
def main(study: Path, model: str | None, dtype: str, output: Path) -> None:
    """Run a study of training settings on development documents."""
    from aft_harness.cli.terminal import quiet
    from aft_harness.errors import AftError

    os.environ.setdefault("TQDM_DISABLE", "1")
    table = pd.read_csv(output) if output.exists() else pd.DataFrame()
    try:
        with quiet():
            from aft_harness.boosters.booster import write_atomically
            from aft_harness.demo import model_folder
            from aft_harness.harness.model import SteeredHFLM

            lm = SteeredHFLM(model or str(model_folder()), dtype=dtype, softmax_dtype="float32", batch_size=16)
            for row in trained(lm, yaml.safe_load(study.read_text(encoding="utf-8")), table):
                table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
                write_atomically(output, table.to_csv(index=False).encode())
                trained_for = f"{row['relative_norm']:.1%}, {row['seconds']:.0f} s" if "seconds" in row else ""
                click.echo(
                    f"{row['run']}: acc {row['acc']:.1%}, acc_norm {row['acc_norm']:.1%}, loss {row['loss']:.4f}, "
                    f"{row['loss_norm']:.4f}, perplexity {row['perplexity']:.1f}, {trained_for}"
                )
    except AftError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
