"""`aft transfer`: train on some tasks, evaluate on others, and collect a leaderboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aft_harness.cli.app import CONTEXT, main, note, resumable
from aft_harness.cli.options import format_option, place_option
from aft_harness.cli.report import report_line
from aft_harness.cli.terminal import cell_bar, duration, quiet, study_bars
from aft_harness.cli.values import FILE, LAYERS, WORK_FOLDER, in_folder
from aft_harness.files import make_folder, write_atomically
from aft_harness.studies.plan import Plan
from aft_harness.studies.workers import Place


@main.command("transfer", context_settings=CONTEXT)
@click.argument("plan", required=False, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--model", "models", multiple=True, help="Hub id or folder, in place of the plan's models; may be repeated."
)
@click.option("--dtype", default="auto", show_default=True, help="Data type of their weights.")
@click.option(
    "--gguf",
    "files",
    multiple=True,
    metavar="FILE",
    help="GGUF file of the model, on which its boosters are evaluated, too; may be repeated.",
)
@click.option(
    "--train", "sources", multiple=True, metavar="T[+T...]", help="Training tasks of one booster; may be repeated."
)
@click.option("--evaluate", "tasks", multiple=True, metavar="T[=A:B]", help="Task to evaluate on; may be repeated.")
@click.option(
    "--layers", multiple=True, type=LAYERS, metavar="all|L,...", help="Layers of one booster; may be repeated."
)
@click.option("--seeds", default="0", show_default=True, metavar="S,...", help="Training seeds.")
@click.option("--train-limit", type=click.IntRange(min=1), help="Training documents per task.")
@click.option("--dev-docs", type=click.IntRange(min=0), default=0, help="Development documents per task.")
@click.option("--include-path", multiple=True, metavar="FOLDER", help="Folder with additional task YAML files.")
@click.option(
    "--folder",
    type=WORK_FOLDER,
    required=True,
    help="Folder for finished work, which the study resumes from; with --on also an address such as s3://bucket/folder.",
)
@click.option("--to", "table_file", required=True, type=FILE, help="CSV file of the leaderboard.")
@click.option("--markdown", type=FILE, help="Also write the leaderboard as Markdown.")
@click.option("--heat-map", "heat_maps", multiple=True, type=FILE, help="Also draw a heat map, as PNG or SVG.")
@place_option
@click.option("--dry-run", is_flag=True, help="Print what would run, with an estimate of the time.")
@format_option
@click.pass_context
def transfer(
    context: click.Context,
    /,
    *,
    plan: Path | None,
    folder: Path | str,
    table_file: Path,
    place: Place | None,
    markdown: Path | None,
    heat_maps: tuple[Path, ...],
    dry_run: bool,
    form: str,
    models: tuple[str, ...],
    dtype: str,
    files: tuple[str, ...],
    **options: Any,
) -> None:
    """Train boosters on some tasks and evaluate them on others.

    There is one booster for each task or mixture, and every booster is evaluated on every evaluation task. PLAN is a
    YAML file (see docs/transfer-studies.md); small studies can be described with options instead. If the command is
    interrupted or killed, rerun it to resume from --folder.
    """
    for name, paths in (("--to", (table_file,)), ("--markdown", (markdown,)), ("--heat-map", heat_maps)):
        for path in paths:
            in_folder(name, path)
    if place is not None:
        place.check_installed()
    if isinstance(folder, Path):
        make_folder(folder)
    elif place is None or dry_run:
        why = "--dry-run looks into folders of this machine only" if dry_run else "an address needs --on"
        raise click.BadParameter(f"{folder}: {why}", param_hint="'--folder'")
    resumable(context, folder)
    if files and len(models) != 1:
        raise click.UsageError("--gguf needs one --model: the checkpoint that the file was made from")
    further = (
        {"files": [{"pretrained": str(Path(file).absolute()), "batch_size": 16} for file in files]} if files else {}
    )
    arguments = [{"pretrained": model, "dtype": dtype, "batch_size": 16, **further} for model in models]
    study = Plan.read(plan, arguments) if plan else _from_options(models=arguments, **options)
    with quiet():
        from aft_harness.api import evaluation as api
        from aft_harness.harness.metrics import lower_is_better
        from aft_harness.results import plots, table

        for path in heat_maps:
            plots.check_format(path)
        if dry_run:
            _print_estimates(study, Path(folder))
            return
        with cell_bar() if place else study_bars() as reports:
            found = api.transfer(study, folder, table_file, on=str(place) if place else None, reports=reports)
        corrected = found[found["p_holm"].notna()]
        if markdown:
            write_atomically(markdown, (table.render(found, "md") + "\n").encode())
        for path in heat_maps:
            plots.plot_transfer(corrected, path, lower_is_better(corrected["metric"]))
    click.echo(table.render(corrected, form))
    note(report_line(*([folder] if isinstance(folder, Path) else []), table_file))


def _print_estimates(study: Plan, folder: Path) -> None:
    from aft_harness.harness.model import SteeredHFLM
    from aft_harness.studies.cost import estimates
    from aft_harness.studies.transfer import Study

    for arguments, files in zip(study.models, study.files, strict=True):
        lm = SteeredHFLM(**arguments)
        total = 0.0
        for estimate in estimates(Study(lm, study, folder, files)):
            total += estimate.seconds or 0.0
            seconds = estimate.seconds
            click.echo(f"{estimate.cell:<56}{'done' if seconds is None else f'about {duration(seconds)}'}")
        click.echo(f"{lm.base_model.name}: about {duration(total)} in all")


def _from_options(
    *,
    models: list[dict[str, Any]],
    sources: tuple[str, ...],
    tasks: tuple[str, ...],
    layers: tuple[Any, ...],
    seeds: str,
    train_limit: int | None,
    dev_docs: int,
    include_path: tuple[str, ...],
) -> Plan:
    """The plan that options make, by the same words as a file.

    Raises:
        click.UsageError: Something is missing or cannot be read.
    """
    for option, values in (("--model", models), ("--train", sources), ("--evaluate", tasks)):
        if not values:
            raise click.UsageError(f"give a PLAN or {option}")
    how = {"dev_docs": dev_docs, **({"limit": train_limit} if train_limit else {})}
    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise click.BadParameter(f"{seeds}: expected whole numbers", param_hint="'--seeds'") from None
    return Plan.of(
        {
            "models": models,
            "train": {source: {task: how for task in source.split("+")} for source in sources},
            "evaluate": {
                task: {"docs": docs} if docs else {} for task, _, docs in (each.partition("=") for each in tasks)
            },
            **({"layers": [str(each) for each in layers]} if layers else {}),
            "seeds": numbers,
            "include_path": list(include_path),
        }
    )
