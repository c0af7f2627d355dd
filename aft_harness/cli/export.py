"""`aft export`: a booster as another tool reads it. The commands are made from the registry of targets."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from aft_harness.cli.app import CONTEXT, Group, main, option
from aft_harness.cli.terminal import lines, quiet
from aft_harness.publish.export.registry import TARGETS
from aft_harness.publish.export.target import MODEL, Option, Target
from aft_harness.text import printable


@main.group("export", cls=Group, context_settings=CONTEXT, short_help="Export a booster to another tool's format.")
def export() -> None:
    """Write a booster in the format of another tool: exactly, or refused with the reason."""


def _command(target: Target) -> click.Command:
    """The command of a target."""

    def run(vector: tuple[str, ...], output: Path, scale: float, overwrite: bool, **options: Any) -> None:
        from aft_harness.boosters import references
        from aft_harness.publish.export import registry

        with option("VECTOR"):
            references.parse(list(vector))
        begun = time.perf_counter()
        with quiet(hub=MODEL in target.options):
            done = registry.export(target.name, list(vector), output, scale=scale, overwrite=overwrite, **options)
        found = [("written", f"{printable(done.path)} in {time.perf_counter() - begun:.1f} s")]
        found += [("note", note) for note in done.notes]
        click.echo("\n".join(lines(found)))
        for name, text in (("To use it:", done.use), ("To see that it is on:", done.check)):
            click.echo(f"\n{name}\n" + "\n".join(f"    {line}" for line in text.splitlines()))

    what = "folder to write" if target.shape == "folder" else f"file to write; its name ends in {target.suffix}"
    parameters = [
        click.Argument(["vector"], nargs=-1, required=True, metavar="VECTOR..."),
        click.Option(
            ["-o", "--output"],
            required=True,
            type=click.Path(path_type=Path),
            metavar=f"OUTPUT{target.suffix}",
            help=f"The {what}.",
        ),
        *map(_option, target.options),
        click.Option(
            ["--scale"], type=float, default=1.0, show_default=True, help="Factor on the strength of the whole."
        ),
        click.Option(["--overwrite"], is_flag=True, help="Replace an export that exists."),
    ]
    return Group.command_class(
        target.name,
        context_settings=CONTEXT,
        params=parameters,
        callback=run,
        short_help=target.summary,
        help="\n\n".join(filter(None, (target.summary, target.description, _VECTORS))),
    )


_VECTORS = """VECTOR is what `vector=` takes: a .safetensors file, a name of `aft list` or hf://owner/repo/file.safetensors,
with `:0.5` for a strength, and several with `+` between them or as several arguments for a mixture."""


def _option(described: Option) -> click.Option:
    """An option of a target as click has it."""
    spelled = f"--{described.name.replace('_', '-')}"
    if described.switch:
        both = f"{spelled}/--no-{spelled[2:]}" if described.default is None else spelled
        return click.Option([both], is_flag=True, default=described.default, help=described.help)
    kind = click.Choice(described.choices) if described.choices else None
    # click takes a default of None for a value: an option that is required would count as given.
    default = {} if described.default is None else {"default": described.default, "show_default": True}
    return click.Option([spelled], type=kind, required=described.required, help=described.help, **default)


for _target in TARGETS.values():
    export.add_command(_command(_target))
