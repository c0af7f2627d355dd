"""Environments that hold one engine each, and the scripts of `peers` that run in them. Knows pip and subprocesses."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

PEERS = Path(__file__).parent / "peers"


def environment(
    home: Path,
    requirements: Sequence[str],
    *,
    constraints: Sequence[str] = (),
    without: Sequence[str] = (),
    checkout: Path | None = None,
    empty: Mapping[str, str] | None = None,
) -> Path:
    """The Python of an environment with these packages, made on the first call.

    Args:
        home: Where it is.
        requirements: Packages.
        constraints: Versions of what comes with them.
        without: What comes with them and is removed.
        checkout: A folder that is installed as well, by reference.
        empty: Packages without content, by name and version, for a tool that looks for a name.

    Raises:
        click.ClickException: They cannot be installed.
    """
    python, marker = home / "bin" / "python", home / "installed"
    wanted = json.dumps([requirements, constraints, without, checkout is not None, empty or {}])
    if marker.is_file() and marker.read_text() == wanted:
        return python
    click.echo(f"installing {', '.join(requirements)}; the first time takes minutes", err=True)
    venv.create(home, with_pip=True, clear=True)
    pinned = home / "constraints.txt"
    pinned.write_text("\n".join(constraints))
    editable = [] if checkout is None else ["--editable", str(checkout)]
    _pip(python, "install", "--constraint", str(pinned), *requirements, *editable)
    if without:
        _pip(python, "uninstall", "--yes", *without)
    for name, number in (empty or {}).items():
        project = home / "empty" / name
        project.mkdir(parents=True)
        (project / "pyproject.toml").write_text(
            f'[project]\nname = "{name}"\nversion = "{number}"\n[tool.setuptools]\npy-modules = []\n'
        )
        _pip(python, "install", "--no-deps", str(project))
    marker.write_text(wanted)
    return python


def overlay(home: Path, requirements: Sequence[str], package: Path, *, editable: bool = False) -> Path:
    """The Python of an environment that adds packages to those of the running one, made on the first call.

    Args:
        home: Where it is.
        requirements: Packages.
        package: A wheel of this project, or its checkout.
        editable: Whether the checkout is installed by reference.

    Raises:
        click.ClickException: They cannot be installed.
    """
    python, marker = home / "bin" / "python", home / "installed"
    wanted = json.dumps([sys.prefix, requirements, editable])
    if not marker.is_file() or marker.read_text() != wanted:
        click.echo(f"installing {', '.join(requirements)}; the first time takes minutes", err=True)
        venv.create(home, with_pip=True, clear=True)
        ours, below = (sysconfig.get_path("purelib", vars={"base": str(base)}) for base in (home, sys.prefix))
        (Path(ours) / "below.pth").write_text(below)
        _pip(python, "install", *requirements)
        marker.write_text(wanted)
    _pip(python, "install", "--no-deps", "--force-reinstall", *(["--editable"] if editable else []), str(package))
    return python


def wheel(checkout: Path, folder: Path) -> Path:
    """A wheel of this project."""
    for old in folder.glob("*.whl"):
        old.unlink()
    _pip(Path(sys.executable), "wheel", "--no-deps", "--wheel-dir", str(folder), str(checkout))
    return next(folder.glob("*.whl"))


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", arguments[0], "--quiet", *arguments[1:]]
    if (done := subprocess.run(command, capture_output=True, text=True, check=False)).returncode:
        raise click.ClickException(f"pip {' '.join(arguments)} failed: {done.stderr.strip()[-500:]}")


def version(python: Path, package: str) -> str:
    """The version of a package in an environment."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def asked(python: Path, script: str, request: Mapping[str, Any]) -> None:
    """Runs a script of `peers`, which reads the request from stdin.

    Raises:
        click.ClickException: It fails.
    """
    command = [str(python), str(PEERS / script)]
    done = subprocess.run(command, input=json.dumps(request), stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{script} failed: {done.stderr.strip()[-500:]}")
    sys.stderr.write(done.stderr)
