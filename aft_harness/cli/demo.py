"""`aft tasks`, `aft demo-model` and `aft demo`: what comes with the package."""

from __future__ import annotations

from pathlib import Path

import click

from aft_harness.cli.app import CONTEXT, main, note
from aft_harness.cli.terminal import lines, quiet


@main.command("tasks", context_settings=CONTEXT)
def tasks_folder() -> None:
    """Print the folder of the bundled tasks, for --include_path.

    The tasks are listed on stderr.
    """
    from aft_harness.harness import suites

    for line in lines(suites.listed()):
        note(line)
    click.echo(suites.folder())


@main.command("demo-model", context_settings=CONTEXT)
def demo_model() -> None:
    """Print the folder of the demo model.

    The model, SmolLM2-135M-Instruct, is unpacked on first use.
    """
    with quiet(hub=False):
        from aft_harness.demo import model_folder

        path = model_folder()
    click.echo(path)


@main.command("demo", context_settings=CONTEXT)
@click.option("--output", default="demo", show_default=True, metavar="FOLDER", help="Folder for the results.")
@click.option("--gguf", is_flag=True, help="Evaluate on the GGUF file that the model comes in (needs the extra gguf).")
def demo(output: str, gguf: bool) -> None:
    """Train and evaluate a booster for the demo model.

    The evaluation uses the stock lm_eval; the paired result is printed, and a report is made to look at.
    """
    from aft_harness.demo import gguf_file, model_folder, run

    with quiet(hub=False):
        model_folder()
        if gguf:
            gguf_file()
    run(Path(output), gguf=gguf)  # outside of it: its steps are commands of their own, with bars of their own
