"""Checks that commands survive crashes, full disks, read-only folders and each other: `make verify-crashes`.

    python scripts/tools/check_crashes.py
    python scripts/tools/check_crashes.py --only transfer --only kills --moments 30 --seed 7

Each command that writes something runs on a tiny random model, first undisturbed. Then:

- *order*: what the undisturbed run did to files is looked through. No file is opened for writing under its final name,
  and the state of a training goes when its booster is in its place.
- *kills*: the command is killed at random moments of its run, just before random changes of files, and in the middle of
  random writes. Every file is then whole: as it was, or as it will be. The same command, run again, succeeds with the
  same result, dates aside. Where everything is there already, it may ask for --overwrite.
- *full*: files cannot grow beyond a few sizes, or a file system has no room. The command ends with one line, and leaves
  nothing half-written; run again with more room, it succeeds with the same result.
- *read-only*: the command writes into a file system that is mounted read-only, or below a file. It ends with one line.
- *together*: two processes write the same files at the same time. The result is that of two in a row; one of the two
  may refuse, with one line.

Full and read-only file systems need root or user namespaces. Linux only; no data and no network.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# Read by libraries when they are imported. A fork of a process that computed in several threads could hang.
os.environ.update({"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"})
os.environ["TQDM_DISABLE"] = "1"

import click
from crashes import mounts
from crashes.checks import Check, Verdict
from crashes.commands import COMMANDS, TOYS, available, workshop
from crashes.process import warm_up

CHECKS = ("order", "kills", "full", "read-only", "together")


@click.command()
@click.option("--only", multiple=True, metavar="NAME", help="Command or check; may be repeated.  [default: all]")
@click.option("--moments", type=click.IntRange(min=0), default=6, show_default=True, help="Kills of each command.")
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Folder, which is replaced.  [default: a temporary one]"
)
def main(only: tuple[str, ...], moments: int, seed: int, folder: Path | None) -> None:
    """Check that commands survive crashes, full disks, read-only folders and each other."""
    if unknown := sorted({*only} - {*COMMANDS, *CHECKS}):
        raise click.BadParameter(f"{unknown[0]}: expected one of {', '.join([*COMMANDS, *CHECKS])}")
    if not mounts.possible():
        mounts.in_namespace(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix="crashes-") as temporary:
        place = (folder or Path(temporary)).absolute()
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        failed = checked(place, only, moments, seed)
    sys.exit(1 if failed else 0)


def checked(folder: Path, only: Sequence[str], moments: int, seed: int) -> int:
    """Runs the checks, prints a line for each, and gives the number of those that failed."""
    begun, failed = time.monotonic(), 0
    names = [name for name in COMMANDS if name in only or not {*only} & {*COMMANDS}]
    checks = [name for name in CHECKS if name in only or not {*only} & {*CHECKS}]
    warm_up(TOYS)
    gc.freeze()  # none of the forks need look for garbage in what they share
    with workshop(folder) as shop:
        for name in names:
            if not available(COMMANDS[name]):
                click.echo(f"{name:<18}{'all':<11}skipped: {COMMANDS[name].needs} is not installed")
                continue
            # Each command has moments of its own, so that --only repeats what happened among the others.
            check = Check(shop, folder / name, name, moments, random.Random(f"{seed} {name}"))
            failed_before = failed
            for what in checks:
                work: Callable[[], Verdict] = getattr(check, what.replace("-", "_"))
                start = time.monotonic()
                verdict = work()
                failed += bool(verdict.problems)
                click.echo(f"{name:<18}{what:<11}{verdict}")
                click.echo(f"    {name}: {what} took {time.monotonic() - start:.0f} s", err=True)
            if failed == failed_before:  # what failed can be looked at
                shutil.rmtree(folder / name)
    click.echo(f"{failed} checks failed; {time.monotonic() - begun:.0f} s", err=True)
    return failed


if __name__ == "__main__":
    main()
