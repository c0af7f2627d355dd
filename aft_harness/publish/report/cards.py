"""What a report tells of each booster: where it came from, how training went, and the command that makes it again.

Knows boosters and their provenance, and rows of tables where a booster's file was not found.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aft_harness.publish.report import charts
from aft_harness.publish.report.charts import Chart, Point, Series
from aft_harness.publish.report.findings import Row
from aft_harness.publish.report.repeat import training_command
from aft_harness.results.table import POOLED

if TYPE_CHECKING:
    from aft_harness.boosters.provenance import Provenance, Score
    from aft_harness.publish.report.sources import BoosterFile

MOST = 200
"""Boosters that are described."""


@dataclass(frozen=True)
class Card:
    """A booster as it is described.

    Attributes:
        name: Of its file, or as tables call it.
        sha256: Its identity.
        facts: Names and values.
        tasks: A line for each task that it learned from, see `TASKS`.
        spark: The path of a line through the mean training losses of its epochs; may be empty.
        losses: Their numbers.
        sweep: The development losses of the layers that were tried; None where none were.
        command: What makes it again; None where its record does not tell.
        note: What the command leaves out.
    """

    name: str
    sha256: str
    facts: list[tuple[str, str]]
    tasks: list[list[str]] = field(default_factory=list)
    spark: str = ""
    losses: str = ""
    sweep: Chart | None = None
    command: str | None = None
    note: str = ""


TASKS = ("task", "version", "rows", "training", "development", "few-shot", "dropped", "weight")
"""Headings of a card's tasks."""


def cards(files: Sequence[BoosterFile], rows: Sequence[Row]) -> list[Card]:
    """The boosters of a report: those with a file, then those that only tables know."""
    found = [_of_file(file) for file in files]
    known = {card.sha256 for card in found}
    for row in rows:
        if row["booster_sha256"] and row["seed"] != POOLED and row["booster_sha256"] not in known:
            known.add(row["booster_sha256"])
            found.append(_of_row(row))
    return found


def _of_file(file: BoosterFile) -> Card:
    from aft_harness.boosters.layers import ranges

    booster, provenance = file.booster, file.booster.provenance
    kinds = sorted({injection.spec["kind"] for injection in booster.injections.values()})
    facts = [
        ("base model", provenance.base_model.label if provenance.base_model else "unknown"),
        ("method", _named(provenance.method, ("objective", provenance.objective))),
        ("injections", f"{', '.join(kinds)}, layers {ranges(booster.layers)}, hidden size {booster.hidden_size}"),
        ("parameters", f"{booster.parameters:,}"),
        *_history(provenance),
        ("trained with", _settings(provenance)),
        ("prompts", _compact(provenance.prompting)),
        ("seed", "" if provenance.seed is None else str(provenance.seed)),
        ("dtype", provenance.dtype or ""),
        ("before", _score(provenance.before, provenance.measured_on)),
        ("after", _score(provenance.after, provenance.measured_on)),
        ("documents", _documents(provenance)),
        ("training", (provenance.training_sha256 or "")[:16]),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted((provenance.versions or {}).items()))),
        ("date", provenance.date or ""),
        ("licence", provenance.licence or ""),
    ]
    command = training_command(file.name, booster)
    note = "" if command else "Its record does not tell the command that made it."
    if command and file.of_study:
        note = (
            "A transfer study made it, and left out training documents that its evaluations ask. The same plan, run "
            "again, makes the very same booster; this command may draw other documents."
        )
    elif command and provenance.training_sha256:
        note = f"The same training has the digest {provenance.training_sha256[:16]}."
    return Card(
        name=file.name,
        sha256=booster.sha256,
        facts=[(name, value) for name, value in facts if value],
        tasks=_tasks(provenance),
        spark=charts.sparkline(provenance.epoch_losses),
        losses=" → ".join(f"{loss:.4f}" for loss in provenance.epoch_losses),
        sweep=_layer_sweep(provenance),
        command=command,
        note=note,
    )


def _of_row(row: Row) -> Card:
    facts = [
        ("base model", f"{row['model']} {row['revision']}".strip()),
        ("method", _named(row["method"], ("objective", row["objective"]))),
        ("layers", row["layers"]),
        ("parameters", "" if row["booster_parameters"] is None else f"{row['booster_parameters']:,}"),
        ("trained on", row["trained_on"]),
        ("documents", "" if row["trained_n"] is None else f"{row['trained_n']:,}"),
        ("seed", row["seed"]),
    ]
    note = "Its file was not among the sources of this report; the leaderboard tells this much."
    return Card(row["booster"], row["booster_sha256"], [(name, value) for name, value in facts if value], note=note)


def _history(provenance: Provenance) -> list[tuple[str, str]]:
    """The boosters and files that a booster was made from."""
    found = []
    if provenance.imported:
        found.append(("imported", f"{provenance.imported.format}, sha256 {provenance.imported.sha256[:16]}"))
    if provenance.start:
        found.append(("started from", f"booster {provenance.start.booster_sha256[:16]}"))
    for part in provenance.parts or ():
        strength = "" if part.strength is None else f" at strength {part.strength:g}"
        found.append(("part", f"booster {part.booster_sha256[:16]}{strength}"))
    if provenance.answered_correctly is not None:
        found.append(("answered correctly", f"{provenance.answered_correctly} documents"))
    return found


def _tasks(provenance: Provenance) -> list[list[str]]:
    return [
        [
            record.task,
            record.version,
            record.split,
            f"{record.n_train:,}",
            f"{record.n_development:,}",
            str(record.num_fewshot),
            f"{record.overlapping_dropped + record.goldless_dropped:,}",
            f"{record.weight:g}",
        ]
        for record in provenance.tasks
    ]


def _settings(provenance: Provenance) -> str:
    how: Mapping[str, Any] = provenance.hyperparameters or {}
    kept = {name: value for name, value in how.items() if value is not None and name not in ("layers", "seed")}
    if how.get("kind") == "static":
        kept = {name: value for name, value in kept.items() if name not in ("rank", "activation", "input_norm")}
    return _compact(kept)


def _compact(values: Mapping[str, Any] | None) -> str:
    """Settings in one line, without those that are not set."""
    told = []
    for name, value in (values or {}).items():
        if value is None or value is False or value == "" or value == {}:
            continue
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        told.append(f"{name.replace('_', ' ')} {text}")
    return ", ".join(told)


def _documents(provenance: Provenance) -> str:
    documents = provenance.documents
    if documents is None or documents.count is None:
        return ""
    unlisted = f", {documents.unlisted:,} of them not listed" if documents.unlisted else ""
    return f"{documents.count:,} training documents, known by the hashes of their questions{unlisted}"


def _score(score: Score | None, measured_on: str | None) -> str:
    if score is None:
        return ""
    accuracy = "" if score.accuracy is None else f", accuracy {score.accuracy:.1%}"
    return f"{score.measure or 'loss'} {score.loss:.4f}{accuracy} on {score.n} {measured_on or ''} documents"


def _layer_sweep(provenance: Provenance) -> Chart | None:
    tried = sorted((int(layer), score) for layer, score in (provenance.layer_sweep or {}).items())
    if not tried:
        return None
    kept = {int(layer) for layer in (provenance.hyperparameters or {}).get("layers", ())}
    measure = tried[0][1].measure or "loss"
    points = [
        Point(layer, score.loss, label=f"layer {layer}: {score.loss:.4f}", marked=layer in kept)
        for layer, score in tried
    ]
    return charts.chart(
        f"{measure} on {tried[0][1].n} development documents, by which the layer was chosen",
        [Series(measure, points, line=True, style=2)],
        "decoder layer",
        measure,
        whole=True,
        head=["layer", measure],
        rows=[[str(layer), f"{score.loss:.4f}"] for layer, score in tried],
    )


def _named(method: str | None, further: tuple[str, str | None]) -> str:
    name, value = further
    return f"{method or 'unknown'}{f', {name} {value}' if value else ''}"
