"""Versions of what a result depends on. Knows names of packages."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from functools import cache
from pathlib import Path

PACKAGES = ("aft-harness", "lm_eval", "torch", "transformers", "datasets")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def installed() -> dict[str, str]:
    """What must be the same wherever parts of one study run."""
    return {**versions(), "aft-harness code": code_digest()}


@cache
def code_digest() -> str:
    """The start of a digest of this package's own code: two checkouts may bear the same version."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder).as_posix()).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
