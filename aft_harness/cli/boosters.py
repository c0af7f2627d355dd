"""`aft show` and `aft mix`: booster files, without a model."""

from __future__ import annotations

import click

from aft_harness.cli.app import CONTEXT, main
from aft_harness.cli.options import check_output
from aft_harness.cli.terminal import score


@main.command("show", context_settings=CONTEXT)
@click.argument("vector")
def show(vector: str) -> None:
    """Print what a booster is: layers, size, norm, and where it came from."""
    from aft_harness.boosters import references
    from aft_harness.boosters.injections import ContextualInjection

    booster, strength = references.load(vector)
    provenance = dict(booster.provenance)
    base = provenance.get("base_model") or {}
    objective = provenance.get("objective")
    lines = [
        ("booster", f"{vector} at strength {strength:g}" if strength != 1 else vector),
        ("sha256", booster.sha256),
        ("base model", f"{base.get('name', 'unknown')} ({str(base.get('fingerprint', ''))[:12]})"),
        ("method", f"{provenance.get('method', 'unknown')}" + (f", objective {objective}" if objective else "")),
        ("parameters", f"{booster.parameters:,} (hidden size {booster.hidden_size})"),
    ]
    for layer, injection in booster.injections.items():
        if isinstance(injection, ContextualInjection):
            what = f"contextual, rank {injection.rank}, {injection.activation}, input norm {injection.input_norm}"
        else:
            what = f"{injection.spec['kind']}, norm {float(injection.tensors['vector'].norm()):.4f}"
        lines.append((f"layer {layer}", what))
    for task in provenance.get("tasks", []):
        lines.append(("trained on", f"{task.get('task')} {task.get('split')}: {task.get('n_train')} documents"))
    for moment in ("before", "after"):
        if told := provenance.get(moment):
            lines.append((moment, f"{score(told['loss'], told['accuracy'])} ({provenance.get('measured_on')})"))
    for key in ("dtype", "seed", "date", "licence"):
        if provenance.get(key) is not None:
            lines.append((key, str(provenance[key])))
    click.echo("\n".join(f"{name:<12}{value}" for name, value in lines))


@main.command("mix", context_settings=CONTEXT)
@click.argument("vectors", nargs=-1, required=True, metavar="V[:STRENGTH]...")
@click.option("-o", "--output", required=True, metavar="FILE.safetensors", help="The booster file to write.")
def mix(vectors: tuple[str, ...], output: str) -> None:
    """Mix boosters of one model into one file that does what all of them do at once."""
    check_output(output)
    from aft_harness.boosters import references
    from aft_harness.boosters.booster import mix as mixed

    parts = [(reference.load(), reference.strength) for vector in vectors for reference in references.parse(vector)]
    booster = mixed(parts)
    booster.save(output)
    layers = ", ".join(map(str, booster.layers))
    click.echo(f"{output}: {len(parts)} boosters, layers {layers}, {booster.parameters:,} parameters")
