"""Environments that hold one engine each, and the scripts of `peers` that run in them. Knows pip and subprocesses."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

PEERS = Path(__file__).parent / "peers"


def environment(
    home: Path, requirements: Sequence[str], *, constraints: Sequence[str] = (), without: Sequence[str] = ()
) -> Path:
    """The Python of an environment with these packages, made on the first call.

    Args:
        home: Where it is.
        requirements: Packages.
        constraints: Versions of what comes with them.
        without: What comes with them and is removed.

    Raises:
        click.ClickException: They cannot be installed.
    """
    python = home / "bin" / "python"
    if not (home / "installed").is_file():
        click.echo(f"installing {', '.join(requirements)}; the first time takes minutes", err=True)
        venv.create(home, with_pip=True, clear=True)
        pinned = home / "constraints.txt"
        pinned.write_text("\n".join(constraints))
        install = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(pinned), *requirements]
        if (done := subprocess.run(install, capture_output=True, text=True, check=False)).returncode:
            raise click.ClickException(f"{', '.join(requirements)} cannot be installed: {done.stderr.strip()[-500:]}")
        if without:
            subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *without], check=False)
        (home / "installed").touch()
    return python


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
