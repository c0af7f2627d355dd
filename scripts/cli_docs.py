"""Writes docs/cli.md from the commands' own help, or with --check says whether it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from aft_harness.cli import main

DOCS = Path(__file__).parent.parent / "docs" / "cli.md"
HEAD = """# Commands

Made by `python scripts/cli_docs.py` from the commands' own help. `aft-train` is `aft train`. Options may be spelled
with underscores, as lm-eval spells them.
"""


def _sections(command: click.Command, name: str) -> list[str]:
    with click.Context(command, info_name=name, **{**command.context_settings, "terminal_width": 100}) as context:
        sections = [f"\n## {name}\n\n```text\n{command.get_help(context)}\n```\n"]
        if isinstance(command, click.Group):
            for child in sorted(command.commands):
                sections += _sections(command.commands[child], f"{name} {child}")
    return sections


def render() -> str:
    """The page as it should be."""
    return HEAD + "".join(_sections(main, "aft"))


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if DOCS.read_text(encoding="utf-8") == render() else f"{DOCS.name} is out of date: run {__file__}")
    DOCS.write_text(render(), encoding="utf-8")
