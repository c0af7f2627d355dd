"""Checks on a real model what makes a leaderboard believable: kills change nothing, and stock runs say the same.

    python scripts/tools/check_transfer.py FOLDER

1. `aft transfer scripts/tools/check_transfer.yaml` runs undisturbed; then afresh, killed with SIGKILL at five random
   moments and started again. Both leaderboards must be equal but for dates.
2. The stock `lm_eval` evaluates the unchanged model and one of the boosters, and `aft leaderboard add` reads its output
   folders. Each row must equal the study's. Only `p_holm` may differ, whose family is larger in the study.

Real rows are needed: set HF_DATASETS_CACHE to a cache that holds them, or be online. A quarter of an hour on two cores.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click
import pandas as pd

HERE = Path(__file__).parent
PLAN = HERE / "check_transfer.yaml"
TASKS = HERE.parents[1] / "tasks"
DTYPE = "bfloat16"
STOCK = {"arc_easy": 60, "gsm8k_choice": 40, "gsm8k_solution": 40}
"""What the stock lm_eval is asked: tasks and limits of the plan."""


def command(model: str, folder: Path) -> list[str]:
    """The study, with its work and its leaderboard in a folder."""
    where = ["--folder", str(folder / "work"), "--to", str(folder / "leaderboard.csv")]
    return [sys.executable, "-m", "aft_harness", "transfer", str(PLAN), "--model", model, "--dtype", DTYPE, *where]


def killed(model: str, folder: Path, moments: list[float]) -> None:
    """Runs the study, killed after so many seconds each time, and then to its end."""
    for moment in moments:
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(command(model, folder), stdout=log, stderr=log)
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            else:
                raise click.ClickException(f"the study ended within {moment:.0f} s, before it was killed")
        lines = (folder / "log").read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
        click.echo(f"killed after {moment:.1f} s: {next((line for line in reversed(lines) if line.strip()), '')}")
    whole(model, folder)


def whole(model: str, folder: Path) -> float:
    """Runs the study to its end and gives the seconds that it took."""
    start = time.perf_counter()
    with (folder / "log").open("ab") as log:
        subprocess.run(command(model, folder), stdout=log, stderr=log, check=True)
    return time.perf_counter() - start


def undated(path: Path) -> pd.DataFrame:
    """A leaderboard without what may differ."""
    return pd.read_csv(path, dtype={"seed": str}).drop(columns=["date"])


def stock(model: str, folder: Path, booster: Path) -> Path:
    """The leaderboard of two output folders of the stock lm_eval for each task."""
    for task, limit in STOCK.items():
        for name, vector in (("base", ""), ("booster", f",vector={booster}")):
            arguments = f"pretrained={model},dtype={DTYPE}{vector}"
            options = ["--tasks", task, "--limit", str(limit), "--batch_size", "16", "--include_path", str(TASKS)]
            kept = ["--output_path", str(folder / f"{name}-{task}"), "--log_samples"]
            asked = [sys.executable, "-m", "lm_eval", "--model", "steered-hf", "--model_args", arguments]
            with (folder / "log").open("ab") as log:
                subprocess.run([*asked, *options, *kept], stdout=log, stderr=log, check=True)
        folders = [str(folder / f"{name}-{task}") for name in ("base", "booster")]
        add = [sys.executable, "-m", "aft_harness", "leaderboard", "add", *folders]
        subprocess.run([*add, "--to", str(folder / "stock.csv")], check=True)
    return folder / "stock.csv"


def same_rows(ours: pd.DataFrame, theirs: pd.DataFrame) -> int:
    """Compares each row of `theirs` with the row of ours that is about the same run, and gives their number."""
    key = ["booster_sha256", "task", "metric", "seed"]
    common = ours.merge(theirs[key], on=key)
    left, right = (frame.drop(columns="p_holm").sort_values(key).reset_index(drop=True) for frame in (common, theirs))
    pd.testing.assert_frame_equal(left, right, check_exact=True)
    return len(theirs)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
def main(folder: Path, seed: int) -> None:
    """Check kills and stock runs; an existing FOLDER is replaced."""
    from aft_harness.demo import model_folder

    model = str(model_folder())
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("undisturbed", "killed", "stock"):
        (folder / name).mkdir(parents=True)
    seconds = whole(model, folder / "undisturbed")
    click.echo(f"undisturbed: {seconds:.0f} s")
    draw = random.Random(seed)
    # A fifth of the time at most, so that what is left of the study cannot end before its last kill.
    killed(model, folder / "killed", [draw.uniform(0, seconds / 5) for _ in range(5)])
    ours = undated(folder / "undisturbed" / "leaderboard.csv")
    pd.testing.assert_frame_equal(undated(folder / "killed" / "leaderboard.csv"), ours, check_exact=True)
    click.echo(f"killed five times: the same {len(ours)} rows")
    booster = sorted((folder / "undisturbed" / "work" / "boosters").glob("*.safetensors"))[0]
    count = same_rows(ours, undated(stock(model, folder / "stock", booster)))
    click.echo(f"stock runs: the same {count} rows")


if __name__ == "__main__":
    main()
