"""Versions of what a result depends on. Knows names of packages."""

from __future__ import annotations

import importlib.metadata
import platform

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
