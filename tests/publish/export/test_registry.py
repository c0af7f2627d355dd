from __future__ import annotations

from pathlib import Path

import pytest

from aft_harness.errors import ExportError
from aft_harness.publish.export.registry import export


def test_an_unknown_target_names_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no export target 'gguuf'; there are .*lm-eval"):
        export("gguuf", "a.safetensors", tmp_path / "a")
