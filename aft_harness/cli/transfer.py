"""`aft transfer`: train on some tasks, evaluate on others, and collect a leaderboard."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aft_harness.cli.app import CONTEXT, KEPT, main
from aft_harness.cli.options import check_writable
from aft_harness.cli.terminal import counting_bar, quiet, said, training_bar
from aft_harness.errors import TaskError

if TYPE_CHECKING:
    from aft_harness.harness.model import SteeredHFLM
    from aft_harness.studies.plan import Plan

_FILE = click.Path(path_type=Path, dir_okay=False)


@main.command("transfer", context_settings=CONTEXT)
@click.argument("plan", required=False, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--model", "models", multiple=True, help="Hub id or folder, instead of the plan's; may be repeated.")
@click.option("--dtype", default="auto", show_default=True, help="Of those models' weights.")
@click.option("--train", "sources", multiple=True, metavar="T[+T...]", help="Tasks of one booster; may be repeated.")
@click.option("--evaluate", "tasks", multiple=True, metavar="T[=A:B]", help="A task to evaluate on; may be repeated.")
@click.option("--layers", multiple=True, metavar="all|L,...", help="Layers of one booster; may be repeated.")
@click.option("--seeds", default="0", show_default=True, metavar="S,...", help="Seeds of the training.")
@click.option("--train-limit", type=click.IntRange(min=1), help="Training documents per task.")
@click.option("--dev-docs", type=click.IntRange(min=0), default=0, help="Development documents per task.")
@click.option("--include-path", multiple=True, metavar="FOLDER", help="Folder with further task YAMLs.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), required=True, help="Where work is kept.")
@click.option("--to", "table", required=True, type=_FILE, help="The leaderboard's CSV file.")
@click.option("--markdown", type=_FILE, help="Also write the leaderboard as Markdown.")
@click.option("--heat-map", "heat_maps", multiple=True, type=_FILE, help="Also draw it, as PNG or SVG.")
@click.option("--dry-run", is_flag=True, help="Print what would run and about how long it takes.")
@click.pass_context
def transfer(
    context: click.Context,
    /,
    *,
    plan: Path | None,
    folder: Path,
    table: Path,
    markdown: Path | None,
    heat_maps: tuple[Path, ...],
    dry_run: bool,
    **options: Any,
) -> None:
    """Train a booster on each of some tasks or mixtures, and evaluate all of them on each of others.

    PLAN is a YAML file, see docs/transfer.md; options serve small studies. Killed at any moment, the same command goes
    on from what --folder holds.
    """
    for path in (table, *([markdown] if markdown else ()), *heat_maps):
        if not path.parent.is_dir():
            raise TaskError(f"{path}: {path.parent} is not a folder")
    check_writable("--folder", folder)
    context.meta[KEPT] = f"what is done is kept in {folder}; the same command goes on from there"
    with quiet():
        from aft_harness.boosters.booster import write_atomically
        from aft_harness.harness.model import SteeredHFLM
        from aft_harness.results import leaderboard, plots
        from aft_harness.studies.plan import Plan

        for path in heat_maps:
            plots.check_format(path)
        dtype = options.pop("dtype")
        models = [{"pretrained": model, "dtype": dtype, "batch_size": 16} for model in options.pop("models")]
        study = Plan.read(plan, models) if plan else _from_options(models=models, **options)
        for arguments in study.models:
            lm = SteeredHFLM(**arguments)
            if dry_run:
                _print_estimates(lm, study, folder)
            else:
                _run(lm, study, folder, table)
        if dry_run:
            return
        found = leaderboard.load(table)
        corrected = found[found["p_holm"].notna()]
        if markdown:
            write_atomically(markdown, ("\n".join(leaderboard.shown(found)) + "\n").encode())
        for path in heat_maps:
            plots.plot_transfer(corrected, path)
    click.echo("\n".join(leaderboard.shown(corrected)))


def _run(lm: SteeredHFLM, study: Plan, folder: Path, table: Path) -> None:
    from aft_harness.harness.score_store import ScoreStore
    from aft_harness.results import leaderboard
    from aft_harness.studies import transfer

    cells = transfer.trainings(lm, study)
    for learned in {one.name: one.tasks for one in cells}.values():
        for examples in learned:
            click.echo(said(examples), err=True)
    made = []
    for number, one in enumerate(cells, start=1):
        prefix = f"{number} of {len(cells)}, {one.name}, seed {one.settings.seed}: "
        with training_bar() as update:
            made.append((one, transfer.train(lm, one, study, folder, partial(update, prefix=prefix))))
    with ScoreStore(folder / "answers.sqlite") as store:
        for number, task in enumerate(study.evaluations, start=1):
            with counting_bar(f"{number} of {len(study.evaluations)}, {task.task}", "request") as update:
                boosters = transfer.wanted(task, made)
                rows = transfer.evaluate(lm, task, boosters, study, folder, store, update)
            leaderboard.add(table, rows)


def _print_estimates(lm: SteeredHFLM, study: Plan, folder: Path) -> None:
    from aft_harness.studies.transfer import estimates

    total = 0.0
    for what, seconds in estimates(lm, study, folder):
        total += seconds or 0.0
        click.echo(f"{what:<48}{'done' if seconds is None else f'about {_minutes(seconds)}'}")
    click.echo(f"{lm.base_model.name}: about {_minutes(total)} in all")


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _from_options(
    *,
    models: list[dict[str, Any]],
    sources: tuple[str, ...],
    tasks: tuple[str, ...],
    layers: tuple[str, ...],
    seeds: str,
    train_limit: int | None,
    dev_docs: int,
    include_path: tuple[str, ...],
) -> Plan:
    """The plan that options make, by the same words as a file.

    Raises:
        TaskError: Something is missing or cannot be read.
    """
    from aft_harness.studies.plan import Plan

    for option, values in (("--model", models), ("--train", sources), ("--evaluate", tasks)):
        if not values:
            raise TaskError(f"name a PLAN, or give {option}")
    how = {"dev_docs": dev_docs, **({"limit": train_limit} if train_limit else {})}
    try:
        numbers = [int(seed) for seed in seeds.split(",")]
        where = [each if each == "all" else [int(layer) for layer in each.split(",")] for each in layers]
    except ValueError:
        raise TaskError(f"--seeds {seeds} or --layers {' '.join(layers)}: expected whole numbers") from None
    return Plan.of(
        {
            "models": models,
            "train": {source: {task: how for task in source.split("+")} for source in sources},
            "evaluate": {
                task: {"docs": docs} if docs else {} for task, _, docs in (one.partition("=") for one in tasks)
            },
            **({"layers": where} if where else {}),
            "seeds": numbers,
            "include_path": list(include_path),
        }
    )
