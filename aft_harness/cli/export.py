"""`aft export`: boosters in the formats of other tools, a command for each target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from aft_harness.cli.app import CONTEXT, main, option
from aft_harness.errors import ParseError
from aft_harness.publish.export.registry import TARGETS
from aft_harness.publish.export.registry import export as exported
from aft_harness.publish.export.target import Target
from aft_harness.text import printable


@main.group("export", context_settings=CONTEXT)
def export() -> None:
    """Write a booster in the format of another tool.

    What cannot be said exactly in that format is refused, with the way out.
    """


def _command(target: Target) -> click.Command:
    """The command of a target, with the options that all have and those of its own."""

    def run(vectors: tuple[str, ...], output: Path, scale: float, force: bool, **values: Any) -> None:
        spec: Any = vectors[0] if len(vectors) == 1 else list(vectors)
        model = values.pop("model", None)
        with option("VECTOR"):
            done = exported(target.name, spec, output, model=model, scale=scale, force=force, **values)
        click.echo(
            f"{printable(done.path)}\n\nUse it:\n{_indented(done.use)}\n\nSee that it is on:\n{_indented(done.check)}"
        )

    def named(value: Path) -> Path:
        if target.suffix and value.suffix != target.suffix:
            raise ParseError(f"{value}: the file must end in {target.suffix}")
        return value

    def checked(_: click.Context, __: click.Parameter, value: Path) -> Path:
        with option("--output"):
            return named(value)

    metavar = f"FILE{target.suffix}" if target.suffix else "FOLDER"
    params: list[click.Parameter] = [
        click.Argument(["vectors"], nargs=-1, required=True, metavar="VECTOR..."),
        click.Option(
            ["-o", "--output"],
            required=True,
            type=click.Path(path_type=Path),
            metavar=metavar,
            callback=checked,
            help="What to write.",
        ),
        *(
            [click.Option(["--model"], required=target.needs_model, help=_sentence(target.model))]
            if target.model
            else []
        ),
        click.Option(["--scale"], type=float, default=1.0, show_default=True, help="Factor on the whole of VECTOR."),
        click.Option(["--force"], is_flag=True, help="Replace what is there."),
        *(
            click.Option(
                [f"--{own.name}"], type=click.Choice(own.choices), default=own.default, show_default=True, help=own.help
            )
            if own.choices
            else click.Option([f"--{own.name}"], is_flag=True, default=bool(own.default), help=own.help)
            for own in target.options
        ),
    ]
    return export.command_class(  # type: ignore[misc]
        target.name,
        params=params,
        callback=run,
        help=target.summary,
        short_help=target.summary,
        context_settings=CONTEXT,
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _indented(text: str) -> str:
    return "\n".join(f"  {printable(line)}" for line in text.split("\n"))


for _target in TARGETS.values():
    export.add_command(_command(_target))
