"""Where this project's own lm-eval tasks are: the folder to give to `lm_eval --include_path`.

This module knows the two places they can be in, an installed package and a checkout, and nothing about the tasks.
"""

from __future__ import annotations

from pathlib import Path

from aft_harness.errors import TaskError

_PACKAGE = Path(__file__).resolve().parents[1]


def folder() -> Path:
    """Return the folder of the bundled task suites.

    Returns:
        `aft_harness/tasks` where the package was installed from a wheel, `tasks` beside the package in a checkout.

    Raises:
        TaskError: The suites are in neither place.
    """
    for place in (_PACKAGE / "tasks", _PACKAGE.parent / "tasks"):
        if (place / "gsm8k_easy").is_dir():
            return place
    raise TaskError("the bundled tasks are missing; reinstall with: pip install --force-reinstall aft_harness")
