"""Writes the pages of docs/ that are made from the code, or with --check says whether they are up to date.

    python scripts/tools/docs.py            # docs/cli.md from the commands' help, docs/api.md from the docstrings
    python scripts/tools/docs.py --check

Knows the two pages and where they lie. How the public interface is rendered is `interface.py`'s work.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"

CLI_HEAD = """# Commands

Made by `python scripts/tools/docs.py` from the commands' own help. `aft-train` is `aft train`. Options may be spelled
with underscores, as lm-eval spells them.
"""


def render_cli() -> str:
    """The page of all commands."""
    from aft_harness.cli import main as command

    return CLI_HEAD + "".join(_help_of(command, "aft"))


def render_api() -> str:
    """The page of the public Python interface."""
    if str(HERE) not in sys.path:  # as it is when this file is run by its path
        sys.path.append(str(HERE))
    import interface

    return interface.render()


PAGES: dict[Path, Callable[[], str]] = {DOCS / "cli.md": render_cli, DOCS / "api.md": render_api}
"""How each generated page is rendered."""


def _help_of(command: click.Command, name: str) -> list[str]:
    with click.Context(command, info_name=name, **{**command.context_settings, "terminal_width": 100}) as context:
        sections = [f"\n## {name}\n\n```text\n{command.get_help(context)}\n```\n"]
        if isinstance(command, click.Group):
            for child in sorted(command.commands):
                sections += _help_of(command.commands[child], f"{name} {child}")
    return sections


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail if a page is out of date.")
def main(check: bool) -> None:
    """Write docs/cli.md and docs/api.md."""
    stale = []
    for path, render in PAGES.items():
        text = render()
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(f"docs/{path.name}")
    if stale:
        raise click.ClickException(f"{' and '.join(stale)} out of date; run: python scripts/tools/docs.py")


if __name__ == "__main__":
    main()
