"""The report itself: one HTML file that asks nothing of any network.

Knows the template and what keeps the page closed: everything that is put in is escaped, data stand in JSON that cannot
end its element, and a Content-Security-Policy allows this page's own style and script, by their digests, and nothing
else.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

import aft_harness
from aft_harness.errors import FileError
from aft_harness.files import exists, write_atomically
from aft_harness.progress import ignore
from aft_harness.publish.report import board, pictures
from aft_harness.publish.report.cards import MOST as MOST_CARDS
from aft_harness.publish.report.cards import TASKS, cards
from aft_harness.publish.report.findings import Row, Summary, summarise
from aft_harness.publish.report.repeat import evaluation_commands
from aft_harness.publish.report.sources import Material, read

FEW, MANY = 3, 60
"""Findings of a kind that are shown at once, and when all are opened."""

ASKED = ("task", "version", "few-shot", "n", "documents", "prompts")
"""Headings of what was asked."""

SECTIONS = {
    "summary": "Summary",
    "heat-map": "Heat map",
    "leaderboard": "Leaderboard",
    "sweeps": "Sweeps",
    "training": "Training",
    "cost": "Cost",
    "documents": "Documents",
    "boosters": "Boosters",
    "repeat": "Repeat",
}


def report(
    sources: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    samples: bool = False,
    title: str | None = None,
    overwrite: bool = False,
    on_note: Callable[[str], None] = ignore,
) -> Path:
    """Writes what commands found as one HTML file that people look at, without a network.

    Args:
        sources: Leaderboards, sweeps and training curves (CSV), boosters, and folders that commands wrote into.
        output: The HTML file.
        samples: Include the documents that were gained and lost, with their texts and loglikelihoods.
        title: Heading; None takes the names of the sources.
        overwrite: Replace a file that exists.
        on_note: Called with each file of a folder that was left out, and why.

    Returns:
        The file.

    Raises:
        AftError: A source cannot be read, there is nothing to report, or the file exists; the message is one line.

    Example:
        >>> report(["leaderboard.csv", "work"], "report.html")  # doctest: +SKIP
    """
    path = Path(output)
    if exists(path) and not overwrite:
        raise FileError(f"{path}: file exists; choose another name, or overwrite it")
    named = [Path(source) for source in ([sources] if isinstance(sources, str | Path) else sources)]
    material = read(named)
    for note in material.notes:
        on_note(note)
    text = render(material, title or ", ".join(_name(each) for each in named), [_name(each) for each in named], samples)
    write_atomically(path, text.encode())
    return path


def _name(path: Path) -> str:
    """What a source is called: never by its folder."""
    return path.name or path.resolve().name or "folder"


def render(material: Material, title: str, origins: Sequence[str], samples: bool = False) -> str:
    """The page of what was found.

    Args:
        material: What to report.
        title: Heading.
        origins: What the sources are called.
        samples: Whether to include documents that were gained and lost.
    """
    rows: list[Row] = list(material.rows)
    lower = _lower_is_better(rows)
    summary = summarise(rows, lower)
    found: list[Any] = []
    if samples and material.runs:
        from aft_harness.publish.report.samples import changed_documents

        names = {(row["booster_sha256"], row["strength"]): row["booster"] for row in rows}
        found = changed_documents(material.runs, lower)
        for each in found:  # as the leaderboard calls it
            each["booster"] = names.get((each["sha256"], each["strength"]), each["booster"])
    table = board.leaderboard_data(rows, lower) if rows else None
    described = cards(material.boosters, rows)
    curves = [picture for curve in material.curves if (picture := pictures.training_chart(curve))]
    parts: dict[str, Any] = {
        "heat_maps": board.heat_maps(rows, lower),
        "columns": board.leaderboard_columns(rows) if rows else [],
        "sweeps": pictures.sweep_charts(rows, lower),
        "curves": curves,
        "cost": pictures.cost_chart(rows, lower),
        "documents": found,
        "documents_asked": samples,
        "cards": described[:MOST_CARDS],
        "cards_omitted": max(len(described) - MOST_CARDS, 0),
        "evaluations": evaluation_commands(rows, {file.booster.sha256: file.name for file in material.boosters}),
    }
    there = {"summary"}
    there |= {"heat-map"} if parts["heat_maps"] else set()
    there |= {"leaderboard", "cost", "repeat"} if rows else set()
    there |= {"documents"} if samples else set()
    there |= {name for name, key in (("sweeps", "sweeps"), ("training", "curves"), ("boosters", "cards")) if parts[key]}
    style, script = _asset("report.css"), _asset("report.js")
    return (
        _environment()
        .from_string(_asset("report.html.j2"))
        .render(
            **parts,
            title=title,
            about=_about(rows),
            summary=summary,
            share=_share(summary),
            few=FEW,
            many=MANY,
            sections=[(name, text) for name, text in SECTIONS.items() if name in there],
            static_rows=_static(rows, table),
            total=len(rows),
            plain_text=pictures.PLAIN_TEXT,
            task_head=TASKS,
            asked=_asked(rows),
            asked_head=ASKED,
            sources=", ".join(origins),
            versions=_versions(rows),
            version=aft_harness.__version__,
            notes=material.notes,
            policy=policy(style, script),
            style=Markup(style),
            script=Markup(script),
            data=Markup(board.for_script({"board": table, "documents": found})),
            details=Markup(board.for_script(board.details_data(rows))),
        )
    )


def policy(style: str, script: str) -> str:
    """The Content-Security-Policy of a page with this style and this script: nothing else runs, loads or is sent."""
    allowed = {
        "default-src": "'none'",
        "style-src": _digest(style),
        "script-src": _digest(script),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in allowed.items())


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return files("aft_harness.publish.report").joinpath(name).read_text(encoding="utf-8")


def _environment() -> Environment:
    found = Environment(autoescape=True, undefined=StrictUndefined, finalize=_visible, keep_trailing_newline=True)
    found.filters["soft"] = _soft
    return found


def _soft(name: object) -> Markup:
    """A name, escaped, that may break after the signs that join its words."""
    return Markup("<wbr>").join(re.split("(?<=[_+/])", _visible(str(name))))


def _visible(value: Any) -> Any:
    """A text without characters that turn the direction of writing or are not to be seen; lines stay lines."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "".join(character if character.isprintable() or character == "\n" else " " for character in value)


def _lower_is_better(rows: Iterable[Row]) -> frozenset[str]:
    from aft_harness.harness.metrics import lower_is_better

    return lower_is_better(row["metric"] for row in rows)


def _about(rows: Sequence[Row]) -> str:
    """Which models, how much of what, and when."""
    if not rows:
        return ""
    models = list(dict.fromkeys(row["model"] for row in rows if row["model"]))
    boosters = len({(row["booster"], row["booster_sha256"]) for row in rows if row["seed"] != "pooled"})
    tasks = len({row["task"] for row in rows})
    dates = sorted({row["date"] for row in rows if row["date"]})
    told = [", ".join(models[:3]) + (f" and {len(models) - 3} more models" if len(models) > 3 else "")]
    told.append(f"{boosters:,} booster{'s' if boosters != 1 else ''} on {tasks:,} task{'s' if tasks != 1 else ''}")
    told.append(f"{len(rows):,} row{'s' if len(rows) != 1 else ''}")
    if dates:
        told.append(dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}")
    return " · ".join(filter(None, told))


def _versions(rows: Iterable[Row]) -> str:
    found = sorted({(row["lm_eval"], row["aft_harness"]) for row in rows if row["lm_eval"]})
    told = "; ".join(f"lm_eval {lm_eval} and aft_harness {own or 'unknown'}" for lm_eval, own in found)
    return f"Results are of {told}." if told else ""


def _share(summary: Summary) -> list[tuple[str, float, float]]:
    """The parts of the bar under the headline: kind, start and width, of 100."""
    parts = {"gain": len(summary.gains), "open": len(summary.undecided), "loss": len(summary.losses)}
    total = sum(parts.values())
    found, start = [], 0.0
    for kind, count in parts.items():
        if count:
            found.append((kind, round(start, 3), round(100 * count / total, 3)))
            start += 100 * count / total
    return found


def _static(rows: Sequence[Row], data: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """The first rows as text by column, for readers without JavaScript."""
    if data is None:
        return []
    by = "p_holm" if data["compared"] else "p_value"
    order = sorted(range(len(rows)), key=lambda place: (rows[place][by] is None, rows[place][by] or 0))
    shown = data["shown"]
    return [
        {key: column["values"][column["index"][place] if column["index"] else 0] for key, column in shown.items()}
        for place in order[: board.STATIC_ROWS]
    ]


def _asked(rows: Iterable[Row]) -> list[list[str]]:
    keys = ("task", "task_version", "num_fewshot", "n", "documents_sha256", "prompts_sha256")
    found = {tuple("" if row[key] is None else str(row[key]) for key in keys) for row in rows}
    return [list(each) for each in sorted(found)]
