"""Tables and plots of compare.py, from the cells that it leaves in leaderboards/comparison. Knows no method."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from comparison.exams import CELLS
from comparison.fitted import ALONE, best

from aft_harness.files import write_atomically
from aft_harness.results import plots
from aft_harness.results.statistics import Paired, compare

TITLES = {"arc_easy": "ARC-Easy", "gsm8k_easy": "GSM8K-Easy", "hellaswag": "HellaSwag"}
METRICS = {"arc_easy": "acc", "gsm8k_easy": "acc", "hellaswag": "acc_norm", "hellaswag WikiHow": "acc_norm"}
"""What each task is usually reported by."""
OTHER = {"acc": "acc_norm", "acc_norm": "acc"}
ALL_DOCUMENTS = 591
"""Of ARC-Easy that the methods learn from: three of 594 stand in the test split."""


def cells() -> list[dict[str, Any]]:
    """Every finished cell."""
    return [json.loads(path.read_text()) for path in sorted(CELLS.glob("*.json"))]


def rows(found: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row for each method, learned task, exam and metric; seeds are pooled, documents are the unit."""
    (zero,) = (cell for cell in found if cell["method"] == "zero-shot")
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for cell in found:
        groups[cell["method"], cell["task"]].append(cell)
    for (method, task), runs in groups.items():
        if any("error" in run for run in runs):
            yield {"method": method, "learned": task, "error": runs[0]["error"]}
            continue
        perplexities = [run["perplexity"] for run in runs if run["perplexity"] is not None]
        columns = {
            "method": method,
            "learned": task if runs[0]["parameters"] else "",
            "seeds": len(runs),
            "parameters": runs[0]["parameters"],
            "file_bytes": runs[0]["file_bytes"],
            "seconds": round(float(np.mean([run["seconds"] for run in runs])), 1),
            "setting": _setting(runs[0]["tried"]),
            "perplexity_before": zero["perplexity"],
            "perplexity": float(np.mean(perplexities)) if perplexities else None,
        }
        for exam, metrics in runs[0]["outcomes"].items():
            for metric, outcomes in metrics.items():
                means = np.mean([run["outcomes"][exam][metric] for run in runs], axis=0)
                before = zero["outcomes"][exam][metric][: len(outcomes)]
                yield {
                    **columns,
                    "exam": exam,
                    "metric": metric,
                    **_columns(compare(before, means, means=len(runs) > 1)),
                }


def _columns(paired: Paired) -> dict[str, Any]:
    names = ("n", "baseline", "steered", "delta", "ci_low", "ci_high", "gained", "lost", "p_value", "min_detectable")
    return {name: getattr(paired, name) for name in names}


def _setting(tried: Sequence[Mapping[str, Any]]) -> str:
    if not tried:
        return ""
    kept = tried[best(tried)]
    if "rate" in kept:
        return f"rate {kept['rate']:g} of {len(tried)}"
    layers = kept["layers"]
    where = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"
    return f"{where}, strength {kept['strength']:g}, of {len(tried)}"


def main_table(frame: pd.DataFrame, exam: str) -> str:
    """Methods that learned a task, on test documents of it, the best first."""
    metric, task = METRICS[exam], exam.split()[0]
    shown = frame[(frame["exam"] == exam) & ((frame["learned"] == task) | (frame["learned"].fillna("") == ""))]
    other = shown[shown["metric"] == OTHER[metric]].set_index("method")
    shown = shown[shown["metric"] == metric].sort_values("delta", ascending=False)
    heads = ("method", "numbers", "file", "training", "seeds", metric, "change [95%]", "p", f"{OTHER[metric]}, p")
    lines = [f"| {' | '.join(heads)} | chosen on development documents |", "|" + "---|" * (len(heads) + 1)]
    for row in shown.to_dict("records"):
        zero = row["method"] == "zero-shot"
        change = "" if zero else f"{_points(row['delta'])} [{_points(row['ci_low'])}, {_points(row['ci_high'])}]"
        size = f"{row['file_bytes'] / 1024:,.0f} KB" if row["file_bytes"] else ""
        learned = f"{row['parameters']:,.0f}" if row["parameters"] else ""
        seconds = f"{row['seconds']:.0f} s" if row["seconds"] else ""
        p_value = "" if zero else f"{row['p_value']:.2g}"
        second = other.loc[row["method"]]
        by_other = f"{second['steered']:.1%}" if zero else f"{_points(second['delta'])}, {second['p_value']:.2g}"
        cells = [row["method"], learned, size, seconds, f"{row['seeds']:.0f}", f"{row['steered']:.1%}", change, p_value]
        lines.append(f"| {' | '.join([*cells, by_other])} | {row['setting'] or ''} |")
    return "\n".join(lines)


def elsewhere_table(frame: pd.DataFrame) -> str:
    """What learning one task does to the others, and to plain text."""
    exams = [exam for exam in TITLES if exam in set(frame["exam"])]
    heads = " | ".join(TITLES[exam] for exam in exams)
    lines = [f"| method | learned from | {heads} | perplexity |", "|" + "---|" * (len(exams) + 3)]
    usual = frame[frame["metric"] == frame["exam"].map(METRICS)]
    for (method, learned), group in usual.groupby(["method", "learned"], sort=False):
        if not learned:
            continue
        values = []
        for exam in exams:
            row = group[group["exam"] == exam].to_dict("records")
            star = "*" if row and row[0]["p_value"] < 0.05 else ""
            values.append(f"{_points(row[0]['delta'])}{star}" if row else "")
        first = group.iloc[0]
        ratio = "" if pd.isna(first["perplexity"]) else f"{first['perplexity'] / first['perplexity_before'] - 1:+.1%}"
        lines.append(f"| {method} | {TITLES[str(learned)]} | {' | '.join(values)} | {ratio} |")
    return "\n".join(lines)


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def plot_parameters(frame: pd.DataFrame, path: Path) -> None:
    """Gain against learned numbers; where the ranking of choices alone was minimised, only if nothing else was."""
    every = _on_arc(frame)
    alone = every["method"].str.endswith(ALONE) & every["method"].str.removesuffix(ALONE).isin(every["method"])
    shown = every[~alone & ~every["method"].str.contains("documents")].to_dict("records")
    figure, axis = plots.backend().subplots(figsize=(7.2, 4), layout="constrained")
    for row in shown:
        colour = "#ff725c" if row["method"].startswith("ours") else "#4269d0"
        filled = "white" if row["method"].endswith(ALONE) else colour
        low, high = 100 * (row["delta"] - row["ci_low"]), 100 * (row["ci_high"] - row["delta"])
        place = (row["parameters"], 100 * row["delta"])
        axis.errorbar(*place, yerr=[[low], [high]], fmt="o", color=colour, ecolor="#cccccc", markerfacecolor=filled)
        # A name goes below its point where it would run into one that is as far right or a little more, and higher.
        under = any(
            1 <= other["parameters"] / row["parameters"] < 3 and 0 < other["delta"] - row["delta"] < 0.025
            for other in shown
        )
        offset = (6, -11) if under else (6, 4)
        axis.annotate(row["method"].removesuffix(ALONE), place, textcoords="offset points", xytext=offset, fontsize=8)
    axis.set_xscale("log")
    _finish(figure, axis, "learned numbers", path)


def plot_examples(frame: pd.DataFrame, path: Path) -> None:
    """Gain against training documents."""
    curve = []
    for row in _on_arc(frame).to_dict("records"):
        match = re.fullmatch(r"ours, (\d+) documents", row["method"])
        if match or row["method"] == "ours":
            curve.append((int(match[1]) if match else ALL_DOCUMENTS, row))
    curve.sort(key=lambda pair: pair[0])
    counts = [count for count, _ in curve]
    deltas = np.array([100 * row["delta"] for _, row in curve])
    errors = [deltas - [100 * row["ci_low"] for _, row in curve], [100 * row["ci_high"] for _, row in curve] - deltas]
    figure, axis = plots.backend().subplots(figsize=(7.2, 3.4), layout="constrained")
    axis.errorbar(counts, deltas, yerr=errors, fmt="o-", color="#ff725c", ecolor="#cccccc")
    axis.set_xscale("log")
    axis.set_xticks(counts, list(map(str, counts)))
    axis.minorticks_off()
    _finish(figure, axis, "training documents", path)


def _on_arc(frame: pd.DataFrame) -> pd.DataFrame:
    """Methods that learned ARC-Easy, by `acc` on its test documents."""
    return frame[(frame["exam"] == "arc_easy") & (frame["metric"] == "acc") & (frame["learned"] == "arc_easy")]


def _finish(figure: Any, axis: Any, over: str, path: Path) -> None:
    axis.axhline(0, color="#888888", linewidth=0.8)
    axis.set_xlabel(over)
    axis.set_ylabel("change of acc on ARC-Easy (points)")
    axis.spines[["top", "right"]].set_visible(False)
    plots.save(figure, path)


def write(output: Path, page: Path) -> None:
    """Writes the CSV, the plots, and what stands between the page's markers."""
    frame = pd.DataFrame(rows(cells()))
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / "smollm2-135m.csv", frame.to_csv(index=False).encode())
    tried = [
        {"method": cell["method"], "learned": cell["task"], "seed": cell["seed"], **setting}
        for cell in cells()
        for setting in cell.get("tried", [])
    ]
    write_atomically(output / "tried.csv", pd.DataFrame(tried).to_csv(index=False).encode())
    good = frame[frame["exam"].notna()] if "exam" in frame else frame
    plot_parameters(good, output / "parameters.png")
    plot_examples(good, output / "examples.png")
    parts = {exam: main_table(good, exam) for exam in METRICS} | {"elsewhere": elsewhere_table(good)}
    if "error" in frame:
        failed = frame[frame["error"].notna()].to_dict("records")
        parts["failed"] = "\n".join(f"- {row['method']}: {row['error']}" for row in failed)
    text = page.read_text(encoding="utf-8")
    for name, table in parts.items():
        pattern = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)", re.DOTALL)
        text = pattern.sub(f"{table}\n".replace("\\", r"\\"), text)
    write_atomically(page, text.encode())
