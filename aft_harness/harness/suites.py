"""Where this project's own lm-eval tasks are: the folder to give to `lm_eval --include_path`.

This module knows the two places they can be in, an installed package and a checkout, and of the
tasks their names.
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


def listed() -> list[tuple[str, str]]:
    """Return the bundled tasks, each with the title of the suite it is in, ordered by suite."""
    found = []
    for readme in sorted(folder().glob("*/README.md")):
        title = readme.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        found += [(path.stem, title) for path in sorted(readme.parent.glob("*.yaml"))]
    return found
