"""docs/universality.md: a table and a paragraph of each phase, made of its leaderboard alone.

Knows rows of leaderboards, and the correction over a phase. Knows nothing of how the rows came about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from aft_harness.files import write_atomically
from aft_harness.results import table
from aft_harness.results.statistics import holm
from aft_harness.text import between

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "universality.md"
SCRIPT = "scripts/studies/universality.py"
NAMES = {"gsm8k_easy": "GSM8K-Easy", "arc_easy": "ARC-Easy", "plain_text": "plain text", "hellaswag": "HellaSwag"}
NAMES |= {"piqa": "PIQA", "openbookqa": "OpenBookQA", "commonsense_qa_question": "CommonsenseQA"}


def claims(frame: pd.DataFrame, *, left_out: bool = False) -> list[dict[str, Any]]:
    """The rows that a phase is about, with the p-value that is corrected over all of them as `p_holm`.

    These are a task's first metric at strength 1, with seeds pooled where there are several, of boosters that learned
    the task alone. Everything else in the leaderboard is for the record.

    Args:
        frame: A leaderboard.
        left_out: Of boosters that learned several tasks, but not this one.
    """
    rows = [row for row in table.to_rows(frame) if row["p_holm"] is not None]
    whole = {task for row in rows for task in str(row["trained_on"]).split("+")}
    if left_out:
        kept = [row for row in rows if row["transfer"] and row["task"] in whole and "+" in str(row["trained_on"])]
    else:
        kept = [row for row in rows if row["trained_on"] == row["task"]]
    kept = [{**row, **_gained_and_lost(row, frame)} for row in kept]
    for row, p_value in zip(kept, holm([row["p_value"] for row in kept]), strict=True):
        row["p_holm"] = p_value
    order = list(dict.fromkeys(row["model"] for row in sorted(kept, key=lambda row: (row["parameters"], row["model"]))))
    tasks = [task for task in NAMES if any(row["task"] == task for row in kept)]
    tasks += sorted({row["task"] for row in kept} - set(tasks))
    return sorted(kept, key=lambda row: (tasks.index(row["task"]), order.index(row["model"])))


def _gained_and_lost(row: Mapping[str, Any], frame: pd.DataFrame) -> dict[str, Any]:
    """Documents gained and lost; of pooled seeds the mean, which the row itself cannot say."""
    if row["seed"] != table.POOLED:
        return {}
    same = (
        *("model", "revision", "dtype", "trained_on", "trained_n", "layers", "strength", "task", "metric", "filter"),
        *("documents_sha256", "prompts_sha256"),
    )
    single = [
        other
        for other in table.to_rows(frame)
        if other["seed"] != table.POOLED and all(other[column] == row[column] for column in same)
    ]
    if not single or any(other["gained"] is None for other in single):
        return {}
    return {name: sum(other[name] for other in single) / len(single) for name in ("gained", "lost")}


def lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table, in Markdown."""
    heads = ("task", "model", "weights", "n", "without", "with", "change [95%]", "gained / lost", "p (Holm)", "visible")
    found = [f"| {' | '.join(heads)} |", "|---|---|--:|--:|--:|--:|---|---|--:|--:|"]
    for row in rows:
        change = table.change(row).replace(" points", "")
        cells = (
            NAMES.get(row["task"], row["task"]),
            table.markdown(str(row["model"])),
            _millions(row["parameters"]),
            str(row["n"]),
            f"{row['baseline']:.1%}",
            f"{row['steered']:.1%}",
            f"**{change}**" if row["p_holm"] < table.SIGNIFICANT else change,
            "" if row["gained"] is None else f"{row['gained']:.0f} / {row['lost']:.0f}",
            f"{row['p_holm']:.2g}",
            "" if row["min_detectable"] is None else f"{100 * row['min_detectable']:.1f}",
        )
        found.append(f"| {' | '.join(cells)} |")
    return found


def sentences(rows: Sequence[Mapping[str, Any]], things: str = "architectures", left_out: bool = False) -> list[str]:
    """What the table says, a sentence or two a task."""
    found = []
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        significant = [row for row in of_task if row["p_holm"] < table.SIGNIFICANT]
        gains, losses = ([row for row in significant if row["delta"] * sign > 0] for sign in (1, -1))
        what = "that did not learn it " if left_out else ""
        name = NAMES.get(task, task)
        text = f"On {name} a booster {what}gains on {_of(gains, of_task, things)}"
        if gains:
            text += f", by {_range([100 * row['delta'] for row in gains])} points"
        text += "."
        if losses:
            text += f" It loses on {_of(losses, of_task, things)}: {_models(losses)}."
        unsure = [row for row in of_task if row not in significant]
        if unsure:
            seen = [100 * row["min_detectable"] for row in unsure if row["min_detectable"] is not None]
            text += f" Of {_models(unsure)} no change is significant"
            text += f"; with probability 0.8 one of {_range(seen)} points would have been seen." if seen else "."
        found.append(text)
    return found


def costs(frame: pd.DataFrame) -> list[str]:
    """What boosters do to plain text, a sentence for each thing that they learned."""
    rows = [row for row in table.to_rows(frame) if row["task"] == "plain_text" and row["p_holm"] is not None]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        learned = str(row["trained_on"])
        groups.setdefault("mixtures" if "+" in learned else NAMES.get(learned, learned), []).append(row)
    found = []
    for learned, group in groups.items():
        changes, before = ([row[name] for row in group] for name in ("delta", "baseline"))
        found.append(
            f"Plain text changes by {_range(changes, '+.3f')} bits per byte with boosters of {learned}, from "
            f"{_range(before, '.2f')}; less is better."
        )
    return found


def section(rows: Sequence[Mapping[str, Any]], further: Sequence[str] = (), **wording: Any) -> str:
    """The generated part of a phase.

    Args:
        rows: From `claims`.
        further: Lines between the sentences and the table.
        wording: Of `sentences`.
    """
    if not rows:
        return "This phase has not been run."
    seeds = sorted({int(row["seeds"] or 1) for row in rows})
    pooled = f"the mean of {' or '.join(map(str, seeds))} seeds" if seeds != [1] else "one seed"
    about = (
        f"Changes are in points, {pooled}, each paired with the unchanged model document by document; bold: "
        f"significant after Holm's correction over these {len(rows)} rows. *Visible* is the change that so many "
        "documents would have shown with probability 0.8, before the correction."
    )
    spoken = [f"- {text}" for text in sentences(rows, **wording)]
    return "\n".join(["", *spoken, *further, "", *lines(rows), "", about, ""])


def write(page: Path, phase: str, content: str) -> None:
    """Puts the generated part of a phase into the page."""
    begin, end = f"<!-- {phase}: {SCRIPT} -->", f"<!-- end of {phase} -->"
    write_atomically(page, between(page.read_text(encoding="utf-8"), begin, end, content).encode())


def _millions(count: int) -> str:
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"


def _of(some: Sequence[Any], every: Sequence[Any], things: str) -> str:
    return f"{len(some) or 'none'} of {len(every)} {things}"


def _models(rows: Sequence[Mapping[str, Any]]) -> str:
    names = [str(row["model"]).rpartition("/")[2] for row in rows]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _range(values: Sequence[float], form: str = ".1f") -> str:
    low, high = (format(value, form) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
