"""The notebooks of docs/notebooks run from top to bottom, and are committed with the outputs of such a run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "scripts" / "tools" / "notebooks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["notebooks"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tool: ModuleType, smollm2: Path) -> None:
    executed = tool.executed(path)
    committed = nbformat.read(path, as_version=4)
    for before, after in zip(committed.cells, executed.cells, strict=True):
        if after.cell_type == "code":  # the numbers are a machine's own, that there is something to see is not
            assert [output.output_type for output in before.outputs] == [output.output_type for output in after.outputs]
            assert not any(output.get("name") == "stderr" for output in after.outputs)


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) == 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_nothing_of_a_machine(path: Path) -> None:
    assert "/home/" not in (text := path.read_text(encoding="utf-8")) and "/root" not in text and "/tmp" not in text
