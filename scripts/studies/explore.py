"""Tries settings of training one after another and says how each does on development documents.

What the default recipe rests on: docs/log.md says what was tried, this makes its numbers.

    python scripts/studies/explore.py scripts/studies/explore/arc_easy.yaml --output leaderboards/recipe/arc_easy.csv

A study is a YAML file: `task`, `limit` (training documents), `dev_docs` (carved from the same rows) or `development`
(rows of a split that nothing evaluates, as `SPLIT[a:b]`), `base` (fields of `recipe.Settings`; what is left out is the
default recipe's) and `runs` (a name, and the fields that differ; `limit` may differ too, and `start: mean-difference`
starts from that direction at the middle layer). No test document is touched, and development documents are measured
once, after the last epoch. Runs that the table holds are not repeated: they are known by everything that a training
depends on, not by name.

What a booster costs is measured in bits for each byte of the task `plain_text`. The published tables of
leaderboards/recipe were made before that task: they hold a perplexity of the same passages instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pandas as pd
import yaml

if TYPE_CHECKING:
    from aft_harness.boosters.variant import Variant
    from aft_harness.harness.examples import TaskExamples
    from aft_harness.training.recipe import ChoiceNorm

NORMS: dict[str, ChoiceNorm] = {"": "none", "_norm": "characters"}
"""Suffixes of columns, and how choices are ranked there: as `acc` and as `acc_norm` do."""


def settings_of(study: Mapping[str, Any], run: Mapping[str, Any]) -> Any:
    """The settings of one run of a study."""
    from aft_harness.training.recipe import Settings

    known = {field.name for field in fields(Settings)}
    if unknown := set(run) - known - {"name", "limit", "start"} | set(study.get("base", {})) - known:
        raise click.ClickException(f"{run.get('name')}: unknown settings {', '.join(sorted(unknown))}")
    given = {**study.get("base", {}), **run}
    return Settings(**{name: value for name, value in given.items() if name in known})


def examples_of(study: Mapping[str, Any], limit: int, lm: Any) -> TaskExamples:
    """Training and development examples of a study."""
    from documents import training_and_development

    return training_and_development(lm, study["task"], limit, study.get("development") or int(study["dev_docs"]))


def rows(lm: Any, study: Mapping[str, Any], table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """A row for each run that the table does not hold; trained when it is asked for."""
    from aft_harness.boosters.variant import BASELINE, Variant
    from aft_harness.training import extraction
    from aft_harness.training.identity import training_identity
    from aft_harness.training.train import train

    if not len(table):
        examples = examples_of(study, 1, lm)
        yield {"task": study["task"], "run": "unchanged model", **measured(lm, examples, BASELINE)}
    for run in study["runs"]:
        settings = settings_of(study, run)
        examples = examples_of(study, int(run.get("limit", study["limit"])), lm)
        start = extraction.mean_difference(lm, examples) if run.get("start") == "mean-difference" else None
        identity = training_identity(lm, [examples], settings, start)
        if identity in set(table.get("training_sha256", ())):
            continue
        click.echo(f"{run['name']} ...", err=True)
        result = train(lm, [replace(examples, development=[])], settings, start=start)
        recorded = {name: value for name, value in asdict(settings).items() if name != "split_seed"}
        yield {
            "task": study["task"],
            "run": run["name"],
            **recorded,
            "objective": result.booster.provenance.objective,
            "layers": str(settings.layers),
            "n_train": len(examples.train),
            **measured(lm, examples, Variant(run["name"], result.booster)),
            "epoch_losses": " ".join(f"{loss:.4f}" for loss in result.epoch_losses),
            "relative_norm": max(result.relative_norm.values()),
            "parameters": result.booster.parameters,
            "seconds": round(result.seconds, 1),
            "training_sha256": identity,
        }


def measured(lm: Any, examples: TaskExamples, variant: Variant) -> dict[str, float | None]:
    """What is compared: accuracy and loss on development documents, by either metric, and what plain text costs."""
    from aft_harness.harness.evaluation import evaluate
    from aft_harness.harness.suites import folder
    from aft_harness.harness.tasks import Tasks
    from aft_harness.training.development import ranking_scores

    columns: dict[str, float | None] = {"development_n": len(examples.development)}
    for suffix, norm in NORMS.items():
        (score,) = ranking_scores(lm, [variant], [examples], examples.development, norm)
        columns |= {f"acc{suffix}": score.accuracy, f"loss{suffix}": score.loss}
    (plain,) = evaluate(lm, [variant], ["plain_text"], source=Tasks([folder()]))
    columns["bits_per_byte"] = plain.results["results"]["plain_text"]["bits_per_byte,none"]
    return columns


@click.command()
@click.argument("study", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--model", help="Hub id or folder.  [default: the demo model SmolLM2-135M-Instruct]")
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
            from aft_harness.demo import model_folder
            from aft_harness.files import write_atomically
            from aft_harness.harness.model import SteeredHFLM

            lm = SteeredHFLM(model or str(model_folder()), dtype=dtype, softmax_dtype="float32", batch_size=16)
            for row in rows(lm, yaml.safe_load(study.read_text(encoding="utf-8")), table):
                table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
                write_atomically(output, table.to_csv(index=False).encode())
                cost = f", {row['relative_norm']:.1%}, {row['seconds']:.0f} s" if "seconds" in row else ""
                click.echo(
                    f"{row['run']}: acc {row['acc']:.1%}, acc_norm {row['acc_norm']:.1%}, loss {row['loss']:.4f}, "
                    f"{row['loss_norm']:.4f}, {row['bits_per_byte']:.4f} bits per byte{cost}"
                )
    except AftError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
