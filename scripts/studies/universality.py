"""Does a booster gain on every architecture, at every size? The numbers of docs/universality.md.

    python scripts/studies/universality.py home-made     --work WORK --output leaderboards/universality
    python scripts/studies/universality.py architectures --work WORK --output leaderboards/universality
    python scripts/studies/universality.py scaling       --work WORK --output leaderboards/universality
    python scripts/studies/universality.py universal     --work WORK --output leaderboards/universality
    python scripts/studies/universality.py forecasts     --output leaderboards/universality

`home-made` needs no hub: five small models of different kinds are trained here from scratch, on the same text
(`universal/text.py` says what is in it, and what is not), and each learns a booster a task. `architectures` and
`scaling` do the same with published models, `universal` with mixtures of tasks of which one is left out; these want a
GPU. Memory and time of each model are printed first, and `--dry-run` ends there. `forecasts` predicts them for all
models from their published sizes, on this machine.

Everything that is finished is kept in WORK: rerun the same command to resume. Models of the hub are used at one commit,
which `universal/models.yaml` names or the first run finds out and writes into WORK/models.lock.yaml; a leaderboard has
it in each row. A model that cannot be had is named at the end, and the others are run.

Written: OUTPUT/PHASE.csv, a leaderboard, and the phase's part of docs/universality.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from universal import page as pages
from universal.plans import Size, home_made, mixtures, specialists
from universal.revisions import Named, models_of, pinned

from aft_harness.cli.app import CONTEXT, Group
from aft_harness.cli.terminal import quiet, study_bars
from aft_harness.errors import AftError

# Threads that spin while they wait for each other make a pretraining twenty times slower where another program takes a
# core. This is read when torch is imported, which nothing above does.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

PHASES: dict[str, tuple[str, Callable[[Mapping[str, Any], Size], Any], dict[str, Any]]] = {
    "architectures": ("architectures", specialists, {}),
    "scaling": ("scaling", specialists, {"things": "models"}),
    "universal": ("architectures", mixtures, {"left_out": True}),
    "home-made": ("", home_made, {}),
}
"""Of each phase the models of `models.yaml`, the plan, and how the page speaks of it."""


def options_of(*, hub: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options of a phase; those of models on the hub where it has any."""
    path = click.Path(path_type=Path)
    common = [
        click.option("--work", type=path, required=True, help="Folder for finished work, which a run resumes from."),
        click.option("--output", type=path, required=True, help="Folder for the tables."),
        click.option(
            "--page", type=path, default=pages.PAGE, show_default="docs/universality.md", help="To write into."
        ),
        click.option("--seeds", default="0,1,2", show_default=True, help="Of trainings, separated by commas."),
        click.option(
            "--train-limit", type=click.IntRange(1), help="Training documents of a task.  [default: the plan's]"
        ),
        click.option("--limit", type=click.IntRange(1), help="Test documents of a task.  [default: the plan's]"),
        click.option("--dry-run", is_flag=True, help="Print what memory and time it takes, and end there."),
    ]
    named = "Hub id, ID@COMMIT or folder; may be repeated.  [default: those of models.yaml]"
    further = [
        click.option("--model", "models", multiple=True, metavar="M", help=named),
        click.option("--dtype", default="bfloat16", show_default=True, help="Of weights."),
        click.option("--device", help="Such as cuda:1.  [default: a GPU if there is one]"),
        click.option("--batch-size", default=16, show_default=True, help="Rows of a pass."),
    ]

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed([*common, *(further if hub else [])]):
            command = option(command)
        return command

    return add


def size_of(seeds: str, train_limit: int | None, limit: int | None) -> Size:
    """How much of a phase is run.

    Raises:
        click.BadParameter: Seeds that are no whole numbers.
    """
    try:
        return Size(tuple(int(seed) for seed in seeds.split(",")), train_limit, limit)
    except ValueError:
        raise click.BadParameter(f"{seeds}: expected whole numbers such as 0,1,2", param_hint="--seeds") from None


@click.group(cls=Group, context_settings=CONTEXT)
def main() -> None:
    """Does a booster gain on every architecture, at every size?"""


@main.command()
@options_of(hub=True)
def architectures(**options: Any) -> None:
    """TinyLlama, Qwen1.5-1.8B, Gemma-2B and Phi-2: one booster a task."""
    on_the_hub("architectures", **options)


@main.command()
@options_of(hub=True)
def scaling(**options: Any) -> None:
    """Qwen2.5 from 0.5B to 7B, Llama-2-7B and Mistral-7B: one booster a task."""
    on_the_hub("scaling", **options)


@main.command()
@options_of(hub=True)
def universal(**options: Any) -> None:
    """The models of `architectures`: mixtures of six tasks, all of them and each without one."""
    on_the_hub("universal", **options)


@quiet()
def on_the_hub(
    phase: str,
    *,
    work: Path,
    output: Path,
    page: Path,
    models: Sequence[str],
    dtype: str,
    device: str | None,
    batch_size: int,
    dry_run: bool,
    **amounts: Any,
) -> None:
    """Runs a phase on published models.

    Raises:
        click.ClickException: Some models could not be run; the others were.
    """
    from universal.prediction import predicted

    listed, plan_of, _ = PHASES[phase]
    make_folders(work, output)
    size = size_of(**amounts)
    how = {"dtype": dtype, "batch_size": batch_size, **({"device": device} if device else {})}
    plans, failed = [], []
    for model in [Named.parse(each) for each in models] or models_of(listed):
        try:
            (arguments,) = pinned([model], work)
            plan = plan_of({**arguments, **how}, size)
            click.echo(predicted(plan, work))
            plans.append(plan)
        except AftError as error:
            failed.append(model.pretrained)
            click.echo(f"left out: {error}", err=True)
    if not dry_run:
        if not models:
            begin_anew(phase, output)
        failed += run(phase, plans, work, output)
        write(phase, output, page)
    if failed:
        raise incomplete(failed)


def begin_anew(phase: str, output: Path) -> None:
    """Removes a leaderboard that a whole phase is about to make: the correction counts what else stands in it.

    What was finished comes back from the work folder in a moment.
    """
    (output / f"{phase}.csv").unlink(missing_ok=True)


def incomplete(failed: Sequence[str]) -> click.ClickException:
    """The end of a phase of which some models could not be run, for reasons that were printed."""
    return click.ClickException(f"not run: {', '.join(failed)}; the reasons stand above, and the other models are done")


def run(phase: str, plans: Sequence[Any], work: Path, output: Path) -> list[str]:
    """Runs the plan of each model; returns which failed, and prints why."""
    from aft_harness.api.evaluation import transfer

    failed = []
    for plan in plans:
        name = str(plan.models[0]["pretrained"])
        click.echo(f"{Path(name).name}: training and evaluation", err=True)
        try:
            with study_bars() as reports:
                transfer(plan, work / phase, output / f"{phase}.csv", reports=reports)
        except AftError as error:
            failed.append(name)
            click.echo(f"{name} failed: {error}", err=True)
    return failed


def write(phase: str, output: Path, page: Path, further: Sequence[str] = ()) -> None:
    """Prints what a phase found, and puts it into the page."""
    from aft_harness.results import leaderboard

    place, (_, _, wording) = output / f"{phase}.csv", PHASES[phase]
    if not place.is_file():
        return
    frame = leaderboard.load(place)
    rows = pages.claims(frame, left_out=wording.get("left_out", False))
    content = pages.section(rows, [*(f"- {text}" for text in pages.costs(frame)), "", *further], **wording)
    click.echo(content)
    if page.is_file():
        pages.write(page, phase, content)


def make_folders(*folders: Path) -> None:
    """Makes the folders that a phase writes to."""
    from aft_harness.files import make_folder

    for folder in folders:
        make_folder(folder)


@main.command("home-made")
@click.option("--kind", "kinds", multiple=True, help="Kind of model; may be repeated.  [default: all five]")
@click.option("--steps", type=click.IntRange(1), help="Optimiser steps of a pretraining.  [default: the recipe's]")
@click.option("--threads", type=click.IntRange(1), help="Of the processor.  [default: all]")
@options_of(hub=False)
@quiet()
def home_made_models(
    work: Path,
    output: Path,
    page: Path,
    kinds: Sequence[str],
    steps: int | None,
    threads: int | None,
    dry_run: bool,
    **amounts: Any,
) -> None:
    """Five small models that are trained here from scratch: Llama, Qwen2, Gemma, Phi and Mistral."""
    from dataclasses import replace

    import torch
    from universal import homemade
    from universal.pretraining import KINDS, Recipe

    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise click.BadParameter(f"{unknown[0]}: expected any of {', '.join(KINDS)}", param_hint="--kind")
    make_folders(work, output)
    if threads:
        torch.set_num_threads(threads)
    size, recipe = size_of(**amounts), Recipe()
    material = homemade.Material.of(work, recipe if steps is None else replace(recipe, steps=steps))
    chosen = tuple(kinds) or KINDS
    for line in homemade.predictions(material, chosen, work, lambda model: home_made(model, size)):
        click.echo(line)
    if dry_run:
        return
    records = [material.trained(kind, lambda text: click.echo(text, err=True)) for kind in chosen]
    homemade.record(output, records)
    if not kinds:
        begin_anew("home-made", output)
    failed = run("home-made", [home_made(material.arguments(kind), size) for kind in chosen], work, output)
    write("home-made", output, page, homemade.lines(output))
    if failed:
        raise incomplete(failed)


@main.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Folder for the table.")
@click.option("--page", type=click.Path(path_type=Path), default=pages.PAGE, show_default="docs/universality.md")
@click.option("--only", multiple=True, metavar="ID", help="Model of models.yaml; may be repeated.  [default: all]")
@quiet()
def forecasts(output: Path, page: Path, only: Sequence[str]) -> None:
    """Memory and time of the phases' models on this machine, from their published sizes alone."""
    from universal import prediction

    make_folders(output)
    known = {each.pretrained: each for phase in ("architectures", "scaling") for each in models_of(phase)}
    if unknown := [name for name in only if name not in known]:
        raise click.BadParameter(f"{unknown[0]}: expected any of {', '.join(known)}", param_hint="--only")
    for name in only or known:
        with prediction.published(known[name].published) as place:
            plan = specialists({"pretrained": place, "dtype": "bfloat16", "batch_size": 16}, Size())
            found = prediction.predicted(plan, name=name)
        click.echo(found)
        prediction.add(output / "forecasts.csv", found, list(known))
        if page.is_file():
            pages.write(page, "forecasts", "\n".join(prediction.lines(output / "forecasts.csv")))


if __name__ == "__main__":
    main()
