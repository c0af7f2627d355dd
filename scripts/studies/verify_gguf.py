"""Compares `steered-gguf` with `steered-hf`, and tries whether a booster's gain survives quantisation.

    python scripts/studies/verify_gguf.py                  # `make verify-gguf`; about an hour on two CPU cores
    python scripts/studies/verify_gguf.py --part tests     # only the tests that `make test` skips

Parts: `tests`, the tests that need llama-cpp-python; `stock`, the stock `lm_eval` command on the wheel and on the
checkout; `agreement`, loglikelihoods and choices on a file in float32; `gain`, the booster for ARC-Easy on files of
several types. llama-cpp-python is installed into an environment of its own below --folder, which sees the packages of
this one. Real rows are needed: set HF_DATASETS_CACHE to a cache that holds HellaSwag and ARC-Easy, or be online.

Written: leaderboards/gguf/PART.csv, and the tables of docs/gguf.md.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pandas as pd

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "leaderboards" / "gguf"
PAGE = ROOT / "docs" / "gguf.md"
PARTS = ("tests", "stock", "agreement", "gain")
REQUIREMENTS = ("llama-cpp-python[server]==0.3.36",)
"""The server is for the benchmarks."""

BOOSTER = "smollm2-135m-arc-easy"
NAME = "SmolLM2-135M-Instruct"
QUANTISED = ("F16", "Q8_0", "Q4_K_M", "Q4_0")
TASKS = ("hellaswag", "arc_easy")
FAR, EQUAL = 1e-3, 0.995
"""Largest |difference| of loglikelihoods in float32, and the share of equal choices that is asked for."""


@click.command()
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), default=PARTS, show_default=True)
@click.option("--limit", default=200, show_default=True, type=click.IntRange(min=8), help="Documents of a comparison.")
@click.option("--gain-limit", default=500, show_default=True, help="Documents of ARC-Easy that the gain is taken of.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=ROOT / ".cache" / "gguf",
    show_default="below .cache",
    help="Environments and files.",
)
def main(parts: tuple[str, ...], limit: int, gain_limit: int, folder: Path) -> None:
    """Verifies `steered-gguf` and writes the tables."""
    from exports.environments import overlay, wheel

    folder.mkdir(parents=True, exist_ok=True)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    python = overlay(folder / "environment", REQUIREMENTS, ROOT, editable=True)
    files = _files(python, folder)
    failed: list[str] = []
    if "tests" in parts and _run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *_tests()).returncode:
        failed.append("tests")
    if "stock" in parts:
        built = overlay(folder / "wheel-environment", REQUIREMENTS, wheel(ROOT, folder / "wheels"))
        found = {name: _stock(each, files["F32"], folder / name) for name, each in _named(built, python)}
        click.echo(f"lm_eval --model steered-gguf: {found}")
        if len({json.dumps(each) for each in found.values()}) != 1:
            failed.append(f"the wheel and the checkout give different results: {found}")
    if "agreement" in parts:
        failed += _agreement(python, files["F32"], limit)
    if "gain" in parts:
        _gain(python, {**files, "Q4_1": _embedded()}, gain_limit)
    if failed:
        raise click.ClickException("; ".join(failed))


def _named(built: Path, editable: Path) -> list[tuple[str, Path]]:
    return [("wheel", built), ("editable", editable)]


def _tests() -> list[str]:
    """The files of tests that ask for llama-cpp-python."""
    asking = [
        path for path in sorted((ROOT / "tests").rglob("test_*.py")) if 'importorskip("llama_cpp"' in path.read_text()
    ]
    return [str(path.relative_to(ROOT)) for path in asking]


def _embedded() -> Path:
    from exports.llama import quantised

    return quantised()


def _files(python: Path, folder: Path) -> dict[str, Path]:
    """The embedded model in float32, and what llama.cpp makes of that in other types."""
    from exports.environments import asked
    from exports.llama import dequantised

    found = {kind: folder / f"{NAME}.{kind}.gguf" for kind in ("F32", *QUANTISED)}
    if not found["F32"].is_file():
        dequantised(_embedded(), found["F32"])
    for kind in QUANTISED:
        if not found[kind].is_file():
            asked(python, "llama_quantise.py", {"model": str(found["F32"]), "type": kind, "output": str(found[kind])})
    return found


def _run(python: Path, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    quiet = {"LMEVAL_LOG_LEVEL": "ERROR", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    command = [str(python), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env={**quiet, **os.environ}, check=False, text=True, **options)


def _stock(python: Path, file: Path, output: Path) -> dict[str, dict[str, float]]:
    """What the stock command says of a few documents, without a booster and with one, from a folder of its own."""
    found = {}
    for name, vector in (("baseline", ""), ("steered", f",vector={BOOSTER}")):
        place = output / name
        arguments = ["--model", "steered-gguf", "--model_args", f"pretrained={file}{vector}", "--tasks", "arc_easy"]
        arguments += ["--limit", "24", "--output_path", str(place)]
        for old in place.rglob("results_*.json"):
            old.unlink()
        done = _run(python, "-P", "-m", "lm_eval", "run", *arguments, capture_output=True)
        if done.returncode:
            raise click.ClickException(f"lm_eval failed: {done.stderr.strip()[-500:]}")
        results = json.loads(next(place.rglob("results_*.json")).read_text())
        found[name] = {key: results["results"]["arc_easy"][f"{key},none"] for key in ("acc", "acc_norm")}
    return found


def _agreement(python: Path, file: Path, limit: int) -> list[str]:
    """Loglikelihoods and choices beside those of `steered-hf`; what is too far off."""
    script = Path(__file__).parent / "quantised" / "agreement.py"
    done = _run(python, script, file, BOOSTER, limit, *TASKS, stdout=subprocess.PIPE)
    if done.returncode:
        raise click.ClickException("the comparison failed; its message stands above")
    frame = pd.DataFrame(json.loads(done.stdout.splitlines()[-1]))
    frame.to_csv(OUTPUT / "agreement.csv", index=False)
    rows = [
        (row["task"], row["booster"], row["requests"], f"{row['max_difference']:.1e}", f"{row['equal']} of {row['n']}")
        for row in frame.to_dict("records")
    ]
    write_table("agreement", "task, booster, requests, largest difference of a loglikelihood, same choice", rows)
    far = frame[(frame["max_difference"] > FAR) | (frame["equal"] < EQUAL * frame["n"])]
    return [f"{row['task']}, {row['booster']}: {row['max_difference']:.2g}" for row in far.to_dict("records")]


def _gain(python: Path, files: dict[str, Path], limit: int) -> None:
    """The booster on the checkpoint and on each file, each against its own baseline."""
    from aft_harness.demo import model_folder
    from aft_harness.results.table import read, to_csv

    cases: dict[str, tuple[str, ...]] = {"checkpoint, float32": (str(model_folder()), "--dtype", "float32")}
    cases |= {kind: (str(files[kind]),) for kind in (*QUANTISED, "Q4_1")}
    frames = []
    for name, (model, *options) in cases.items():
        part = OUTPUT / f"gain-{name.partition(',')[0]}.csv"
        command = ["-m", "aft_harness", "evaluate", "--model", model, *options, "--vector", BOOSTER]
        command += ["--tasks", "arc_easy", "--limit", str(limit), "--csv", str(part)]
        if _run(python, *command).returncode:
            raise click.ClickException(f"aft evaluate failed on {model}")
        frames.append((name, read(part)))
        part.unlink()
    to_csv(pd.concat([frame for _, frame in frames]), OUTPUT / "gain.csv")
    rows = []
    for name, frame in frames:
        for row in frame.to_dict("records"):
            points = [f"{100 * row[key]:.1f}" for key in ("baseline", "steered")]
            delta, low, high = (f"{100 * row[key]:+.1f}" for key in ("delta", "ci_low", "ci_high"))
            change = f"{delta} [{low}, {high}]", f"{row['gained']:.0f}, {row['lost']:.0f}", f"{row['p_value']:.1g}"
            rows.append((name, row["metric"], *points, *change))
    write_table("gain", "weights, metric, baseline %, with booster %, change, gained and lost, p", rows)


def write_table(name: str, heads: str, rows: Sequence[Sequence[object]]) -> None:
    """Puts a table into the page."""
    from aft_harness.files import write_atomically
    from aft_harness.text import between

    begin, end = f"<!-- {name}: scripts/studies/verify_gguf.py -->", f"<!-- end of {name} -->"
    lines = [f"| {heads.replace(', ', ' | ')} |", "|---" * len(heads.split(", ")) + "|"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    text = between(PAGE.read_text(encoding="utf-8"), begin, end, "\n".join(lines))
    write_atomically(PAGE, text.encode())


if __name__ == "__main__":
    main()
