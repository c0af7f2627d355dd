"""The command group, and how every command ends: with its result, or with one line that says what went wrong.

Exit codes: 0 done, 1 the work went wrong, 2 the command line cannot be understood, 130 interrupted.
"""

from __future__ import annotations

import errno
import glob
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from aft_harness import __version__
from aft_harness.errors import AftError, ParseError
from aft_harness.results.text import printable

# lm-eval spells options with underscores: both spellings work everywhere.
CONTEXT = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda token: token.replace("_", "-"),
    "max_content_width": 100,
}

KEPT = "aft_harness.kept"
"""Key of a context's `meta`: what an interrupted command leaves behind."""

_VERBOSITY = "aft_harness.verbosity"

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class _Ends(click.Command):
    """How a command line ends that click cannot understand, or whose output cannot be written: in one line on stderr.

    What is echoed of the command line, of paths and of names in files may hold anything, and drives no terminal.
    """

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Runs a command line."""
        try:
            return super().main(*arguments, **options)
        except OSError as error:  # a closed pipe is click's, which ends quietly
            echo_error(_explained(error))
            sys.exit(1)

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        """Reads a command line."""
        with _printable_errors():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        with _printable_errors():
            return super().invoke(ctx)


def _verbosity_option(value: int, *names: str, help: str) -> click.Option:
    def note(context: click.Context, parameter: click.Parameter, given: bool) -> None:
        if given and context.meta.setdefault(_VERBOSITY, value) != value:
            raise click.UsageError("--quiet and --verbose cannot be used together", context)

    return click.Option(names, is_flag=True, expose_value=False, callback=note, help=help)


def verbosity() -> int:
    """What the running command shows on stderr.

    Returns:
        -1: errors only; 0: also progress, notes and warnings; 1: also what the libraries have to say.
    """
    if not is_first_process():
        return -1
    context = click.get_current_context(silent=True)
    return int(context.meta.get(_VERBOSITY, 0)) if context else 0


def is_first_process() -> bool:
    """Whether this process speaks and writes for all that `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


class _Command(_Ends):
    """A command whose bad input ends in one line on stderr and an exit code, never in a traceback."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Adds the options that all commands have."""
        super().__init__(*arguments, **options)
        self.params += [
            _verbosity_option(-1, "-q", "--quiet", help="Show errors only: no progress, notes or warnings."),
            _verbosity_option(1, "-v", "--verbose", help="Also show log messages of lm-eval and other libraries."),
        ]

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except AftError as error:
            echo_error(error)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo(f"Interrupted: {printable(_kept(ctx))}.", err=True)
            ctx.exit(130)


def note(text: object) -> None:
    """Says something on stderr that is no result, unless the command is to be quiet."""
    if verbosity() >= 0:
        click.echo(printable(text), err=True)


def echo_error(error: object) -> None:
    """Says on stderr what went wrong, in one line."""
    click.echo(f"Error: {printable(error)}", err=True)


@contextmanager
def _printable_errors() -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        # The lines are click's own: usage errors list choices or quote the help.
        vars(error)["message"] = "\n".join(map(printable, error.message.split("\n")))  # which click calls final
        raise


def _explained(error: OSError) -> str:
    """What an error that no floor below foresaw is about: a file, or the output."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is not None:
        return f"{error.filename}: {reason}"
    if error.errno not in _UNWRITABLE:
        return reason
    # Python would complain once more when it ends, of what is still to be written.
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return f"the output cannot be written ({reason})"


class Group(_Ends, click.Group):
    """A group of such commands."""

    command_class = _Command


Group.group_class = Group


def resumable(context: click.Context, place: object) -> None:
    """Where a command keeps finished work, for what it says when it is interrupted: a file, a folder or an address."""
    context.meta[KEPT] = place


def _kept(context: click.Context) -> str:
    place = context.meta.get(KEPT)
    # Of several trainings each has a file whose name begins like this.
    if place is None or (isinstance(place, Path) and not any(place.parent.glob(f"{glob.escape(place.name)}*"))):
        return "nothing was written"
    return f"finished work is kept in {place}; rerun the same command to resume"


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
