"""The `aft` and `aft-train` commands: options in, one call into the library, results out.

Importing this package imports nothing heavy, so that `--help` is instant; each command imports what it needs when it
runs.
"""

from aft_harness.cli import (
    boosters,
    demo,
    evaluate,
    export,
    extract,
    generate,
    importing,
    leaderboard,
    library,
    overlays,
    report,
    sweep,
    train,
    transfer,
)
from aft_harness.cli.app import main
from aft_harness.cli.train import train_main

__all__ = [
    "boosters",
    "demo",
    "evaluate",
    "export",
    "extract",
    "generate",
    "importing",
    "leaderboard",
    "library",
    "main",
    "overlays",
    "report",
    "sweep",
    "train",
    "train_main",
    "transfer",
]
