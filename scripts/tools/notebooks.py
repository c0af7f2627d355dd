"""Executes the notebooks of docs/notebooks and writes their outputs into them.

    python scripts/tools/notebooks.py               # all of them: minutes on two CPU cores
    python scripts/tools/notebooks.py first_booster

Each runs in a folder of its own that goes away, on the demo model, without a network.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
TIMEOUT = 600
"""Seconds that a cell may take."""


def executed(path: Path) -> NotebookNode:
    """The notebook with the outputs of a fresh run; an error in a cell is raised.

    Args:
        path: The notebook, which is not changed.
    """
    notebook = nbformat.read(path, as_version=4)
    # Warnings too: tqdm's, say, that there is no widget for its bars.
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryDirectory() as work:
        before = dict(os.environ)
        os.environ.update({**quiet, "LMEVAL_LOG_LEVEL": "ERROR", "TRANSFORMERS_VERBOSITY": "error"})
        try:
            NotebookClient(notebook, timeout=TIMEOUT, resources={"metadata": {"path": work}}).execute()
        finally:
            os.environ.clear()
            os.environ.update(before)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of this run
    return notebook


@click.command()
@click.argument("names", nargs=-1)
def main(names: tuple[str, ...]) -> None:
    """Execute notebooks, all of them or those that are named, and write their outputs."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        if not names or path.stem in names:
            nbformat.write(executed(path), path)
            click.echo(path.name)


if __name__ == "__main__":
    main()
