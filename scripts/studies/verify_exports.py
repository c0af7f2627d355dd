"""Runs every export in the tool that it is for, and compares the logits with those of steered-hf in float32.

    python scripts/studies/verify_exports.py            # `make verify-exports`; half an hour on two CPU cores

Each tool is installed into an environment of its own below --folder, where boosters and models are kept too. Real rows
are needed: set HF_DATASETS_CACHE to a cache that holds ARC-Easy, or be online.

Written: leaderboards/exports/ENGINE.csv, and the table of docs/exports.md, which says what the columns mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "leaderboards" / "exports"
PAGE = ROOT / "docs" / "exports.md"
BEGIN, END = "<!-- table: scripts/studies/verify_exports.py -->", "<!-- end of table -->"
ENGINES = ("lm-eval", "llama.cpp", "vllm")
FAR = 1e-3
"""What logits of float32 may differ by."""


@click.command()
@click.option("--engine", "engines", multiple=True, type=click.Choice(ENGINES), default=ENGINES, show_default=True)
@click.option("--limit", default=400, show_default=True, type=click.IntRange(min=8), help="Documents of ARC-Easy.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=ROOT / ".cache" / "exports",
    show_default="below .cache",
    help="Environments, boosters and models.",
)
def main(engines: tuple[str, ...], limit: int, folder: Path) -> None:
    """Verifies the exports and writes the table."""
    from exports import llama, stock, vllm
    from exports.material import Material

    folder.mkdir(parents=True, exist_ok=True)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    material = Material(folder, limit)
    verified = {"lm-eval": stock.verified, "llama.cpp": llama.verified, "vllm": vllm.verified}
    failed = []
    for engine in engines:
        rows = []
        for row in verified[engine](material, folder / "environments"):
            click.echo(" ".join(f"{name}={value}" for name, value in row.items()), err=True)
            rows.append(row)
            far = np.nanmax([row["max_logit_difference"], row["max_score_difference"]])
            if row["weights"] == "float32" and far > FAR:
                failed.append(f"{row['target']}, {row['booster']}: {far:.2g}")
        pd.DataFrame(rows).to_csv(OUTPUT / f"{engine}.csv", index=False)
    write_page()
    if failed:
        raise click.ClickException(f"logits differ by more than {FAR}: {'; '.join(failed)}")


def write_page() -> None:
    """Puts the table of all engines' files into the page."""
    from aft_harness.files import write_atomically
    from aft_harness.text import between

    heads = "tool, target, weights, booster, compared with, logits, loglikelihoods, moved by the booster, choices equal"
    heads += ", gain, p"
    lines = [f"| {heads.replace(', ', ' | ')} |", "|---" * len(heads.split(", ")) + "|"]
    for path in sorted(OUTPUT.glob("*.csv")):
        for row in pd.read_csv(path, keep_default_na=False).to_dict("records"):
            names = ("max_logit_difference", "max_score_difference", "logits_moved")
            logits, scores, moved = (f"{float(row[name]):.2g}" if row[name] != "" else "" for name in names)
            choices = f"{row['equal_choices']} of {row['n']}"
            parts = (
                row["engine"],
                row["target"],
                row["weights"],
                row["booster"],
                row["against"],
                logits,
                scores,
                moved,
                choices,
                *_gain(row),
            )
            lines.append(f"| {' | '.join(map(str, parts))} |")
    text = between(PAGE.read_text(encoding="utf-8"), BEGIN, END, "\n".join(lines))
    write_atomically(PAGE, text.encode())


def _gain(row: Mapping[Any, Any]) -> tuple[str, str]:
    """The gain of a row with its interval, in points, and its p-value; empty where none was measured."""
    if row.get("delta", "") == "":
        return "", ""
    delta, low, high = (f"{100 * float(row[name]):+.1f}" for name in ("delta", "ci_low", "ci_high"))
    return f"{delta} [{low}, {high}]", f"{float(row['p_value']):.1g}"


if __name__ == "__main__":
    main()
