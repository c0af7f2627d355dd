"""The command group, and how every command ends: with its result, or with one line that says what went wrong.

Exit codes: 0 done, 1 the work went wrong, 2 the command line cannot be understood, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from aft_harness import __version__
from aft_harness.errors import AftError, ParseError

# lm-eval spells options with underscores: both spellings work everywhere.
CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda token: token.replace("_", "-"),
    "max_content_width": 100,
}

KEPT = "aft_harness.kept"
"""Key of a context's `meta`: what an interrupted command leaves behind."""


class _Command(click.Command):
    """A command whose bad input ends in one line on stderr and an exit code, never in a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except AftError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo(f"Interrupted: {ctx.meta.get(KEPT, 'nothing was written')}.", err=True)
            ctx.exit(130)


class Group(click.Group):
    """A group of such commands."""

    command_class = _Command


Group.group_class = Group


def resumable(context: click.Context, place: object) -> None:
    """What an interrupted command says of the work that is kept in a file or folder."""
    context.meta[KEPT] = f"finished work is kept in {place}; rerun the same command to resume"


@contextmanager
def option(name: str) -> Iterator[None]:
    """In this block a value that cannot be understood is that of an option, whose name the message gets."""
    try:
        yield
    except ParseError as error:
        raise click.BadParameter(str(error), param_hint=f"'{name}'") from None


@click.group(cls=Group, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="aft")
def main() -> None:
    """Train, evaluate and share boosters: small learned vectors that steer a frozen language model."""
