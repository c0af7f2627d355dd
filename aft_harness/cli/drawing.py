"""Options that say which documents of tasks, and which pairs of texts, are for training, choosing and reporting.

Knows the words of the command line; what the values mean is the library's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from aft_harness.cli.app import option
from aft_harness.cli.options import collected
from aft_harness.cli.values import by_task, count, positive
from aft_harness.harness.pair_sources import name_of
from aft_harness.harness.selection import (
    HELD_OUT_PAIRS,
    TRAINING_DOCUMENTS,
    PairSelection,
    TaskSelection,
    task_names,
)
from aft_harness.slices import SplitSlice

_TASKS = click.option("--tasks", required=True, metavar="T,...", help="lm-eval tasks to train on.")
_TRAIN_DOCS = click.option(
    "--train-docs",
    multiple=True,
    metavar="[T=]SPLIT[A:B]",
    help="Rows to draw documents from.  [default: the training split]",
)
_LIMIT = click.option(
    "--limit", multiple=True, metavar="[T=]N|all", help=f"Training documents per task.  [default: {TRAINING_DOCUMENTS}]"
)
_DEV_DOCS = click.option(
    "--dev-docs",
    multiple=True,
    metavar="[T=]N",
    help="Development documents per task, held out for choosing the epoch, layer or strength.",
)
_WEIGHT = click.option("--weight", multiple=True, metavar="T=W", help="Weight of a task in a mixture.  [default: 1]")
_TARGET_FIELD = click.option(
    "--target-field",
    multiple=True,
    metavar="[T=]FIELD",
    help="Document field that contains the target text.  [default: the task's own target]",
)
_SPLIT_SEED = click.option(
    "--split-seed",
    type=int,
    default=0,
    show_default=True,
    help="Seed of the split into training and development documents.",
)

pairs_option = click.option(
    "--pairs",
    multiple=True,
    metavar="FILE|HUB-ID",
    help="Pairs of texts: .jsonl, .csv, .parquet, or owner/name:SPLIT[A:B] on the hub; may be repeated.",
)
_HELD_OUT = click.option(
    "--held-out",
    multiple=True,
    metavar="[P=]N",
    help=f"Pairs to hold out for the reported result.  [default: a fifth, at most {HELD_OUT_PAIRS}]",
)

training_drawing_options = collected(
    "drawing",
    {
        "tasks": click.option("--tasks", metavar="T,...", help="lm-eval tasks to train on."),
        "pairs": pairs_option,
        "train_docs": _TRAIN_DOCS,
        "limit": _LIMIT,
        "dev_docs": _DEV_DOCS,
        "held_out": _HELD_OUT,
        "weight": _WEIGHT,
        "target_field": _TARGET_FIELD,
        "split_seed": _SPLIT_SEED,
    },
)
"""Which documents and pairs to learn from; for `mixture`."""

drawing_options = collected(
    "drawing",
    {
        "tasks": _TASKS,
        "train_docs": _TRAIN_DOCS,
        "limit": _LIMIT,
        "dev_docs": _DEV_DOCS,
        "weight": _WEIGHT,
        "target_field": _TARGET_FIELD,
        "split_seed": _SPLIT_SEED,
    },
)
"""Which documents to learn from; for `selections`."""

development_options = collected(
    "drawing",
    {
        "tasks": click.option(
            "--tasks", required=True, metavar="T,...", help="lm-eval tasks to draw development documents from."
        ),
        "train_docs": _TRAIN_DOCS,
        "dev_docs": _DEV_DOCS,
        "target_field": _TARGET_FIELD,
        "split_seed": _SPLIT_SEED,
    },
)
"""Which documents to choose by; for `selections`."""


def selections(
    *,
    tasks: str,
    train_docs: Sequence[str] = (),
    limit: Sequence[str] = (),
    dev_docs: Sequence[str] = (),
    weight: Sequence[str] = (),
    target_field: Sequence[str] = (),
    split_seed: int = 0,
    development_only: bool = False,
) -> list[TaskSelection]:
    """What the values of `drawing_options` select.

    Raises:
        click.BadParameter: A value that cannot be read, or of a task that is not named.
    """
    with option("--tasks"):
        names = task_names(tasks)
    common = _by_source(names, limit=limit, dev_docs=dev_docs, weight=weight)
    rows = by_task("--train-docs", train_docs, names, lambda text: SplitSlice.parse(text) and text)
    fields = by_task("--target-field", target_field, names, str)
    return [
        TaskSelection(
            name,
            train_docs=rows.get(name),
            development_only=development_only,
            target_field=fields.get(name),
            **common[name],
        )
        for name in names
    ]


def mixture(
    *,
    tasks: str | None,
    pairs: Sequence[str] = (),
    train_docs: Sequence[str] = (),
    limit: Sequence[str] = (),
    dev_docs: Sequence[str] = (),
    held_out: Sequence[str] = (),
    weight: Sequence[str] = (),
    target_field: Sequence[str] = (),
    split_seed: int = 0,
) -> tuple[list[TaskSelection], list[PairSelection]]:
    """What the values of `training_drawing_options` select: documents of tasks, and pairs.

    Raises:
        click.UsageError: Neither tasks nor pairs, or an option without what it is about.
        click.BadParameter: See `selections`.
    """
    if tasks is None and not pairs:
        raise click.UsageError("Missing option '--tasks' or '--pairs'")
    if not pairs and held_out:
        raise click.UsageError("--held-out needs --pairs")
    if tasks is None and (train_docs or target_field):
        raise click.UsageError(f"{'--train-docs' if train_docs else '--target-field'} needs --tasks")
    sources = {name_of(source): source for source in pairs}
    if len(sources) < len(pairs):
        raise click.BadParameter("two sources of pairs have the same name; rename one", param_hint="'--pairs'")
    names = []
    if tasks is not None:
        with option("--tasks"):
            names = task_names(tasks)
    among = " and ".join(name for name, given in (("--tasks", names), ("--pairs", sources)) if given)
    common = _by_source([*names, *sources], among, limit=limit, dev_docs=dev_docs, weight=weight)
    reported = by_task("--held-out", held_out, list(sources), count, "--pairs")
    rows = by_task("--train-docs", train_docs, names, lambda text: SplitSlice.parse(text) and text)
    fields = by_task("--target-field", target_field, names, str)
    return (
        [
            TaskSelection(name, train_docs=rows.get(name), target_field=fields.get(name), **common[name])
            for name in names
        ],
        [PairSelection(source, held_out=reported.get(name), **common[name]) for name, source in sources.items()],
    )


def _by_source(
    names: Sequence[str],
    among: str = "--tasks",
    *,
    limit: Sequence[str],
    dev_docs: Sequence[str],
    weight: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """What tasks and pairs have in common, by name."""
    limits = by_task("--limit", limit, names, lambda text: None if text == "all" else count(text, least=1), among)
    weights = by_task("--weight", weight, names, positive, among)
    development = by_task("--dev-docs", dev_docs, names, count, among)
    return {
        name: {
            "limit": limits.get(name, TRAINING_DOCUMENTS),
            "weight": weights.get(name, 1.0),
            "dev_docs": development.get(name, 0),
        }
        for name in names
    }
