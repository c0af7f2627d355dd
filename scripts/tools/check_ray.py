"""Checks studies on workers: kills change nothing, and two workers take half the time of one.

    python scripts/tools/check_ray.py FOLDER            # kills
    python scripts/tools/check_ray.py FOLDER --speed    # 100 cells on one worker, and on two

Kills: a study of a tiny random model runs undisturbed in one process. Then it runs on two workers of a local Ray
cluster, of which one is killed with SIGKILL at five random moments; after the third the command itself is killed, and
started again with three workers. The leaderboards must be the same, byte for byte but for dates.

Needs the extra `ray` and Linux; no data and no network.
"""

from __future__ import annotations

import csv
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import psutil
import yaml
from models.kinds import small, tokenizer

ROOT = Path(__file__).parents[2]
TOYS = ROOT / "tests" / "toy_tasks"
FIRST, AGAIN = "local:2", "local:3"
KILLS, BEFORE = 5, 3
"""Of workers, and how many of them before the command itself is killed."""


def tiny_model(folder: Path) -> Path:
    """A random Llama of four layers, with a tokenizer of single bytes."""
    small("llama").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def plan(folder: Path, seeds: int, epochs: int) -> Path:
    """A study of 8 x `seeds` trainings and four evaluations."""
    content: dict[str, Any] = {
        "models": [{"pretrained": str(tiny_model(folder / "tiny")), "device": "cpu", "batch_size": 2}],
        "train": {"toy_choice": None, "toy_text": None},
        "evaluate": {"toy_choice": None, "toy_text": None, "toy_two_right": None, "toy_functions": None},
        "layers": [[0], [1], [2], [3]],
        "seeds": list(range(seeds)),
        "recipe": {"epochs": epochs, "lr": 0.1, "rate_unit": "absolute"},
        "include_path": [str(TOYS)],
        "workers": {"documents": 4, "cpus": 1},
    }
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def command(study: Path, folder: Path, place: str | None) -> list[str]:
    """The study, with its work and its leaderboard in a folder."""
    where = ["--folder", str(folder / "work"), "--to", str(folder / "leaderboard.csv")]
    return [sys.executable, "-m", "aft_harness", "transfer", str(study), *where, *(["--on", place] if place else [])]


def started(study: Path, folder: Path, place: str | None) -> subprocess.Popen[bytes]:
    """The study, running, each of its processes with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    folder.mkdir(exist_ok=True)
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command(study, folder, place), stdout=log, stderr=log, env=environment)


def ended(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Waits for the study, which must not fail."""
    if process.wait():
        raise click.ClickException((folder / "log").read_text(encoding="utf-8", errors="replace")[-2000:])


def busy_workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The workers that are at a cell."""
    found = []
    for each in psutil.Process(process.pid).children(recursive=True):
        try:
            if " ".join(each.cmdline()).startswith("ray::_RayWorker.run"):
                found.append(each)
        except psutil.Error:
            continue
    return found


def boosters_in(folder: Path) -> int:
    """How many boosters a study has made."""
    return len(list((folder / "work").glob("boosters/*.safetensors")))


def kill_one(process: subprocess.Popen[bytes], draw: random.Random, folder: Path) -> None:
    """Kills a worker at a random moment of its work."""
    time.sleep(draw.uniform(0, 4))
    while not (workers := busy_workers(process)) or not boosters_in(folder):
        if process.poll() is not None:
            raise click.ClickException(f"the study ended before its last kill; see {folder / 'log'}")
        time.sleep(0.05)
    victim = draw.choice(workers)
    os.kill(victim.pid, signal.SIGKILL)
    answers = len(list((folder / "work").glob("answers/*/*")))
    click.echo(f"killed worker {victim.pid} with {boosters_in(folder)} boosters and {answers} shares there")


def undated(path: Path) -> str:
    """The bytes of a leaderboard, but for its dates."""
    lines = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
    place = lines[0].index("date")
    return "\n".join(",".join(line[:place] + line[place + 1 :]) for line in lines)


def check_kills(folder: Path, seed: int) -> None:
    """See the top."""
    study, draw = plan(folder, seeds=3, epochs=10), random.Random(seed)
    start = time.perf_counter()
    ended(started(study, folder / "alone", None), folder / "alone")
    click.echo(f"undisturbed, one process: {time.perf_counter() - start:.0f} s")
    killed = folder / "killed"
    process = started(study, killed, FIRST)
    for _ in range(BEFORE):
        kill_one(process, draw, killed)
    time.sleep(draw.uniform(0, 4))
    process.kill()
    process.wait()
    click.echo(f"killed the command ({FIRST}), starting it again ({AGAIN})")
    process = started(study, killed, AGAIN)
    for _ in range(KILLS - BEFORE):
        kill_one(process, draw, killed)
    ended(process, killed)
    ours, theirs = (undated(folder / name / "leaderboard.csv") for name in ("alone", "killed"))
    if ours != theirs:
        raise click.ClickException("the leaderboards differ")
    click.echo(f"{KILLS} workers and the command killed: the same {len(ours.splitlines()) - 1} rows, byte for byte")


def check_speed(folder: Path) -> None:
    """100 cells on one worker and on two."""
    study = plan(folder, seeds=12, epochs=40)
    seconds = {}
    for place in ("local:1", "local:2"):
        start = time.perf_counter()
        process = started(study, folder / place, place)
        first = None
        while process.poll() is None:
            if first is None and any((folder / place / "work").glob("boosters/*.safetensors")):
                first = time.perf_counter()
            time.sleep(0.02)
        ended(process, folder / place)
        end = time.perf_counter()
        assert first is not None
        seconds[place] = (end - start, end - first)
        click.echo(f"{place}: {end - start:.1f} s, of which {end - first:.1f} s after the first booster")
    if undated(folder / "local:1" / "leaderboard.csv") != undated(folder / "local:2" / "leaderboard.csv"):
        raise click.ClickException("the leaderboards differ")
    whole, rest = (one / two for one, two in zip(*seconds.values(), strict=True))
    click.echo(f"two workers: {whole:.2f} times as fast, {rest:.2f} times after the first booster")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--speed", is_flag=True, help="Time 100 cells on one worker and on two.")
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
def main(folder: Path, speed: bool, seed: int) -> None:
    """Check studies on workers; an existing FOLDER is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if speed:
        check_speed(folder)
    else:
        check_kills(folder, seed)


if __name__ == "__main__":
    main()
