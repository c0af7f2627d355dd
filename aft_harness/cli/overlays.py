"""`aft overlays`: the checkpoints that `steered-vllm` keeps."""

from __future__ import annotations

import time

import click

from aft_harness.cli.app import CONTEXT, main, note
from aft_harness.files import home
from aft_harness.text import printable


@main.command("overlays", context_settings=CONTEXT, short_help="List or remove the checkpoints of steered-vllm.")
@click.option("--clear", is_flag=True, help="Remove them; they are made again when they are needed.")
def overlays(clear: bool) -> None:
    """List the checkpoints that --model steered-vllm made, the last used first.

    Each holds a model's weights, mostly as links, and a booster. They lie in `overlays` below $AFT_HOME,
    ~/.cache/aft_harness by default, and may be removed whenever no evaluation runs.
    """
    from aft_harness.publish import overlays as cache

    found = cache.clear() if clear else cache.overlays()
    for each in found:
        name, strength = each.record.get("booster"), each.record.get("strength")
        used = time.strftime("%Y-%m-%d", time.localtime(each.used))
        click.echo(
            printable(f"{used}  {each.own / 1e6:8.1f} MB  {name} at strength {strength}, {each.record['base_model']}")
        )
    if clear:
        note(f"{len(found)} removed from {home() / 'overlays'}")
    elif not found:
        note(f"none in {home() / 'overlays'}")
