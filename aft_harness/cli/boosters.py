"""`aft show` and `aft mix`: booster files, without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aft_harness.cli.app import CONTEXT, main, option
from aft_harness.cli.drawing import selections
from aft_harness.cli.options import (
    check_model,
    fitting_model_options,
    opened_model,
    prompt_format,
    prompt_options,
)
from aft_harness.cli.terminal import counting_bar, layer_lines, lines, note_examples, quiet, score
from aft_harness.cli.values import BOOSTER_FILE, overwrite_option
from aft_harness.text import printable

if TYPE_CHECKING:
    from aft_harness.boosters.booster import Booster
    from aft_harness.boosters.variant import Variant


@main.command("show", context_settings=CONTEXT)
@click.argument("vector")
@click.option("--json", "as_json", is_flag=True, help="Print the file's metadata as JSON.")
def show(vector: str, as_json: bool) -> None:
    """Describe a booster: its layers, size, norms and provenance."""
    from aft_harness.boosters import references

    with option("VECTOR"):
        variant = references.load(vector)
    if as_json:
        click.echo(_json(variant))
    else:
        # What a file says of itself could otherwise write lines of its own, or drive the terminal.
        click.echo("\n".join(lines([(printable(name), printable(value)) for name, value in _described(variant)])))


def _json(variant: Variant) -> str:
    booster = variant.booster
    assert booster is not None
    return json.dumps(
        {
            "name": variant.name,
            "strength": variant.strength,
            "booster_sha256": booster.sha256,
            "parameters": booster.parameters,
            "hidden_size": booster.hidden_size,
            "injections": booster.specs,
            "provenance": booster.provenance.to_json(),
        },
        indent=2,
        sort_keys=True,
    )


def _described(variant: Variant) -> list[tuple[str, str]]:
    booster = variant.booster
    assert booster is not None
    provenance = booster.provenance
    objective = f", objective {provenance.objective}" if provenance.objective else ""
    found = [
        ("booster", variant.name),
        ("sha256", booster.sha256),
        ("base model", provenance.base_model.label if provenance.base_model else "unknown"),
        ("method", f"{provenance.method or 'unknown'}{objective}"),
        ("parameters", f"{booster.parameters:,} (hidden size {booster.hidden_size})"),
        *layer_lines(booster),
    ]
    if provenance.imported:
        found.append(("imported", provenance.imported.format or "unknown format"))
    for part in provenance.parts or ():
        at = "" if part.strength is None else f" at strength {part.strength:g}"
        found.append(("part", f"{part.booster_sha256[:12]}{at}"))
    for record in provenance.tasks:
        found.append(("trained on", f"{record.task} {record.split}: {record.n_train} documents"))
    if provenance.answered_correctly is not None and provenance.documents:
        count = provenance.documents.count or 0
        found.append(("made from", f"{provenance.answered_correctly} of {count} documents answered correctly"))
    for moment, result in (("before", provenance.before), ("after", provenance.after)):
        if result:
            found.append((moment, f"{score(result)} ({provenance.measured_on} documents)"))
    for key in ("dtype", "seed", "date", "licence"):
        if (value := getattr(provenance, key)) is not None:
            found.append((key, str(value)))
    return found


@main.command("mix", context_settings=CONTEXT)
@click.argument("vectors", nargs=-1, required=True, metavar="V[:STRENGTH]...")
@click.option("-o", "--output", required=True, type=BOOSTER_FILE, metavar="FILE.safetensors", help="File to write.")
@overwrite_option
@click.option(
    "--fit",
    metavar="T,...",
    help="Choose the strengths on development documents of these lm-eval tasks; given ones are multiplied.",
)
@click.option(
    "--fit-docs", type=click.IntRange(min=1), default=32, show_default=True, help="Development documents per task."
)
@fitting_model_options
@prompt_options
def mix(
    vectors: tuple[str, ...],
    output: Path,
    fit: str | None,
    fit_docs: int,
    model: dict[str, Any],
    prompting: dict[str, Any],
) -> None:
    """Mix boosters for the same model into one file.

    The mixture has the combined effect of its parts, each at its strength. With --fit and --model the strengths are
    those with the lowest ranking loss on development documents, which are drawn from the tasks' training split.
    """
    from aft_harness.boosters import references
    from aft_harness.boosters.booster import Booster
    from aft_harness.boosters.layers import ranges
    from aft_harness.boosters.mixing import mix as mixed

    if (fit is None) != (model["model"] is None):
        raise click.UsageError("--fit and --model belong together: the strengths are fitted with the model")
    with option("V"):
        parts = [(reference.load(), reference.strength) for vector in vectors for reference in references.parse(vector)]
    measured: dict[str, Any] = {}
    if fit is not None:
        parts, measured = _fitted(parts, list(vectors), fit, fit_docs, model, prompting)
    booster = mixed(parts)
    Booster(booster.injections, booster.provenance.model_copy(update=measured)).save(output)
    made = f"{len(parts)} boosters, layers {ranges(booster.layers)}, {booster.parameters:,} parameters"
    click.echo(f"{printable(output)}: {made}")


def _fitted(
    parts: list[tuple[Booster, float]],
    names: list[str],
    tasks: str,
    docs: int,
    model: dict[str, Any],
    prompting: dict[str, Any],
) -> tuple[list[tuple[Booster, float]], dict[str, Any]]:
    """The parts at strengths that development documents chose, and their scores there, which are shown."""
    with option("--fit"):
        chosen = selections(tasks=tasks, dev_docs=[str(docs)], development_only=True)
    with quiet():
        from aft_harness.harness.examples import examples_of
        from aft_harness.harness.tasks import Tasks
        from aft_harness.training.fitting import fit_strengths

        check_model(model)
        source = Tasks(prompting["include_path"])
        selected = source.select(chosen)
        with opened_model(model) as lm:
            drawn = [examples_of(*each, lm, prompt_format(prompting)) for each in selected]
            for examples in drawn:
                note_examples(examples)
            boosters = [booster.scaled(strength) for booster, strength in parts]
            with counting_bar("fitting", "pass") as update:
                found = fit_strengths(lm, boosters, drawn, update)
    shown = [("unchanged model", score(found.unchanged))]
    shown += [(name, score(alone)) for name, alone in zip(names, found.alone, strict=True)]
    shown.append(("mixture", score(found.mixed)))
    click.echo(f"On {found.mixed.n} development documents:")
    click.echo("\n".join(lines(shown)))
    fitted = [(booster, strength * factor) for (booster, strength), factor in zip(parts, found.strengths, strict=True)]
    click.echo("strengths " + ", ".join(f"{strength:g}" for _, strength in fitted))
    return fitted, {"measured_on": "development", "before": found.unchanged, "after": found.mixed}
