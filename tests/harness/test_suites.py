from __future__ import annotations

from pathlib import Path

import pytest

from aft_harness.errors import TaskError
from aft_harness.harness import suites


def test_folder_of_a_wheel_and_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "aft_harness"
    monkeypatch.setattr(suites, "_PACKAGE", package)
    (tmp_path / "tasks").mkdir()  # somebody else's, as site-packages may hold
    with pytest.raises(TaskError, match="pip install"):
        suites.folder()
    (tmp_path / "tasks" / "gsm8k_easy").mkdir()
    assert suites.folder() == tmp_path / "tasks"
    (package / "tasks" / "gsm8k_easy").mkdir(parents=True)
    assert suites.folder() == package / "tasks"
