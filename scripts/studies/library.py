"""Makes the boosters that come with the package: trains them, evaluates them, and writes their cards.

    python scripts/studies/library.py FOLDER            # an hour on two CPU cores; rerun the same command to resume

Boosters and results of runs are kept in FOLDER. Every step is a command that is printed before it runs, so that it can
be repeated by hand; real rows are needed (HF_DATASETS_CACHE, or be online). For another recipe, give another folder.

Written: leaderboards/library.csv, and a folder for each booster in aft_harness/bundled.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click

ROOT = Path(__file__).parents[2]
LEADERBOARD = ROOT / "leaderboards" / "library.csv"
BUNDLED = ROOT / "aft_harness" / "bundled"

BOOSTERS = {"smollm2-135m-arc-easy": "arc_easy", "smollm2-135m-gsm8k-easy": "gsm8k_easy"}
"""The task of each booster."""

EVALUATED = {
    "arc_easy": "400:1188",
    "gsm8k_easy": "0:500",
    "hellaswag": "1000:1500",
    "piqa": "0:500",
    "plain_text": "0:100",
}
"""The documents of each task. ARC-Easy's test rows 0-399 and HellaSwag's 0-999 were looked at during development."""

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
LICENCE = "Apache-2.0"
QUICK_TRAINING = ("--limit", "40", "--epochs", "1")
QUICK_DOCUMENTS = 40


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--quick", is_flag=True, help="Stand-ins: few documents to learn from and to evaluate on.")
@click.option("--leaderboard", type=click.Path(path_type=Path, dir_okay=False), default=LEADERBOARD, hidden=True)
@click.option("--to", type=click.Path(path_type=Path, file_okay=False), default=BUNDLED, hidden=True)
def main(folder: Path, quick: bool, leaderboard: Path, to: Path) -> None:
    """Train, evaluate and bundle the boosters of the package."""
    from aft_harness.demo import model_folder
    from aft_harness.harness.suites import folder as suites

    folder.mkdir(parents=True, exist_ok=True)
    model, tasks = str(model_folder()), str(suites())
    common = ["--model", model, "--dtype", "bfloat16", "--include-path", tasks]
    files = {name: folder / f"{name}.safetensors" for name in BOOSTERS}
    for name, task in BOOSTERS.items():
        if not files[name].is_file():
            chosen = QUICK_TRAINING if quick else ()
            step(["train", *common, "--tasks", task, *chosen, "--licence", LICENCE, "--output", str(files[name])])
    vectors = [word for path in files.values() for word in ("--vector", str(path))]
    runs = []
    for task, docs in EVALUATED.items():
        run = folder / "runs" / task
        runs.append(str(run))
        if not any(run.rglob("results_*.json")):
            start = docs.split(":")[0]
            asked = f"{start}:{int(start) + QUICK_DOCUMENTS}" if quick else docs
            unfinished = run.with_name(f"{task}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            run.parent.mkdir(exist_ok=True)
            step(["evaluate", *common, *vectors, "--tasks", task, "--docs", asked, "--output", str(unfinished)])
            os.replace(unfinished, run)
    leaderboard.unlink(missing_ok=True)  # it is made of these runs alone, which the correction counts
    step(["leaderboard", "add", *runs, "--to", str(leaderboard)])
    for name, path in files.items():
        bundle(name, path, leaderboard, to)


def step(arguments: list[str]) -> None:
    """Prints an `aft` command and runs it."""
    click.echo(f"$ {shlex.join(['aft', *arguments])}")
    done = subprocess.run([sys.executable, "-m", "aft_harness", *arguments], check=False)
    if done.returncode:
        raise click.ClickException(f"aft {arguments[0]} failed with exit status {done.returncode}")


def bundle(name: str, path: Path, leaderboard: Path, to: Path) -> None:
    """Writes what the package has of a booster: what `aft push` would push, but called by its name."""
    from aft_harness.boosters.booster import Booster
    from aft_harness.files import written_whole
    from aft_harness.publish.library.push import repository

    made = repository(Booster.load(path), f"aft-harness/{name}", leaderboards=[leaderboard], base_model=BASE)
    to.mkdir(parents=True, exist_ok=True)
    with written_whole(to / name, replace=True) as place:
        place.mkdir()
        for file, content in replace(made, reference=name).files().items():
            (place / file).write_bytes(content)
    click.echo(f"{to / name}: written")


if __name__ == "__main__":
    main()
