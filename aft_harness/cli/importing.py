"""`aft import`: steering vectors that other tools wrote, as booster files."""

from __future__ import annotations

from pathlib import Path

import click

from aft_harness.cli.app import CONTEXT, main
from aft_harness.cli.terminal import layer_lines, lines, quiet
from aft_harness.cli.values import BOOSTER_FILE, overwrite_option
from aft_harness.text import printable


@main.command("import", context_settings=CONTEXT, short_help="Import a steering vector of another tool.")
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=BOOSTER_FILE, metavar="FILE.safetensors", help="The file to write.")
@overwrite_option
@click.option("--model", help="Hub id or folder of the model that the vectors are for; checks that they fit.")
def import_(source: Path, output: Path, model: str | None) -> None:
    """Make a booster of another tool's vectors: a llama.cpp or repeng control vector, a PEFT bias adapter, a .pt.

    FILE is a GGUF control vector, a .pt of lm-eval's steered model type or of (layers, hidden), or the folder of a PEFT
    adapter that is nothing but biases. The format is detected from the content.
    """
    from aft_harness.publish.imports.importing import import_booster

    if model is None:
        booster = import_booster(source)
    else:
        with quiet():
            from aft_harness.harness.opening import opened

            with opened(model, dtype="float32") as lm:
                booster = import_booster(source, lm)
    booster.save(output)
    provenance = booster.provenance
    base = provenance.base_model.label if provenance.base_model else "unknown (name it with --model)"
    imported = provenance.imported
    found = [
        ("booster", f"{output} ({output.stat().st_size:,} bytes)"),
        ("sha256", booster.sha256),
        ("imported", imported.format if imported else ""),
        ("base model", base),
        *layer_lines(booster),
    ]
    click.echo("\n".join(lines([(name, printable(value)) for name, value in found])))
