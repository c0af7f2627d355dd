"""What results say, in words: what gained, what was lost, and what cannot be told.

Knows rows of tables. Claims nothing that has no corrected p-value, and calls no change absent: where a test finds
nothing, it says what it could have found.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aft_harness.results import table
from aft_harness.results.table import POOLED, SIGNIFICANT, is_fraction

Outcome = Literal["gain", "loss", "open", "none"]
"""`open`: tested, and not to be told from no change. `none`: without a corrected p-value."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """A row in words.

    Attributes:
        outcome: What can be said.
        booster: Name of the booster.
        where: The task and its metric.
        change: The change with its interval.
        means: The metric without and with the booster.
        evidence: Number of documents, p-value and, where nothing was found, what could have been.
    """

    outcome: Outcome
    booster: str
    where: str
    change: str
    means: str
    evidence: str


@dataclass(frozen=True)
class Summary:
    """The summary of a report.

    Attributes:
        headline: One sentence.
        remarks: Further sentences.
        footnotes: What counts, and what does not.
        gains: What gained, the most certain first.
        losses: What was lost.
        undecided: What cannot be told.
        sweeps: A sentence for each sweep and task.
    """

    headline: str
    remarks: list[str]
    footnotes: list[str]
    gains: list[Finding]
    losses: list[Finding]
    undecided: list[Finding]
    sweeps: list[str]


def outcome(row: Row, lower_is_better: Collection[str] = ()) -> Outcome:
    """What can be said of a row."""
    if row["p_holm"] is None:
        return "none"
    if not row["p_holm"] < SIGNIFICANT or not row["delta"]:
        return "open"
    return "gain" if improvement(row, lower_is_better) > 0 else "loss"


def improvement(row: Row, lower_is_better: Collection[str] = ()) -> float:
    """The change, positive where the model got better."""
    return float(-row["delta"] if row["metric"] in lower_is_better else row["delta"])


def counts(row: Row) -> bool:
    """Whether a row is a comparison that the summary counts: of a sweep, only what development documents chose."""
    return row["p_holm"] is not None and ("sweep" not in row or row["chosen"] == 1)


def summarise(rows: Sequence[Row], lower_is_better: Collection[str] = ()) -> Summary:
    """The summary of all rows of a report."""
    compared = [row for row in rows if counts(row)]
    by_outcome: dict[str, list[Row]] = {"gain": [], "loss": [], "open": []}
    for row in sorted(compared, key=lambda row: (row["p_holm"], row["p_value"])):
        by_outcome[outcome(row, lower_is_better)].append(row)
    numbers = {name: len(found) for name, found in by_outcome.items()}
    findings = {name: [finding(row, lower_is_better) for row in found] for name, found in by_outcome.items()}
    return Summary(
        headline=headline(numbers["gain"], numbers["loss"], numbers["open"]),
        remarks=_remarks(compared, by_outcome["open"], lower_is_better),
        footnotes=_footnotes(rows, compared),
        gains=findings["gain"],
        losses=findings["loss"],
        undecided=findings["open"],
        sweeps=_sweeps(rows),
    )


def headline(gains: int, losses: int, undecided: int) -> str:
    """What a study found, in one sentence."""
    total = gains + losses + undecided
    if not total:
        return "No comparison has a corrected p-value, so nothing is claimed."
    if total == undecided:
        return (
            "The one comparison cannot be told from no change."
            if total == 1
            else f"None of {total:,} comparisons can be told from no change."
        )
    if total == 1:
        return f"The one comparison is a significant {'gain' if gains else 'loss'}."
    significant = " and ".join(filter(None, (_several(gains, "gain"), _several(losses, "loss", "losses"))))
    if not undecided:
        return f"{significant} in {_several(total, 'comparison')}; all are significant."
    rest = f"{undecided:,} cannot be told from no change"
    return f"{significant} in {_several(total, 'comparison')}; {rest}."


def finding(row: Row, lower_is_better: Collection[str] = ()) -> Finding:
    """A row in words."""
    said = outcome(row, lower_is_better)
    cells = table.cells(row)
    evidence = [f"n = {row['n']:,}"]
    if row["gained"] is not None:
        evidence.append(f"{row['gained']:,} documents gained, {row['lost']:,} lost")
    evidence.append(f"p = {cells['p (Holm)']} corrected" if row["p_holm"] is not None else f"p = {cells['p']}")
    if row["seed"] == POOLED:
        evidence.append(f"mean of {row['seeds']} seeds" if row["seeds"] else "mean of several seeds")
    if said == "open" and row["min_detectable"]:
        size = table.amount(row, row["min_detectable"])
        evidence.append(f"a change of {size} would have been found with probability 0.8")
    strength = "" if row["strength"] in (None, 1) else f" at strength {row['strength']:g}"
    lower = ", lower is better" if row["metric"] in lower_is_better else ""
    return Finding(
        outcome=said,
        booster=f"{cells['booster']}{strength}",
        where=f"{cells['task']}, {cells['metric']}{lower}",
        change=table.change(row),
        means=f"{cells['baseline']} → {cells['steered']}",
        evidence=", ".join(evidence),
    )


def _remarks(compared: Sequence[Row], undecided: Sequence[Row], lower_is_better: Collection[str]) -> list[str]:
    found = []
    trained = [row for row in compared if row["transfer"] == 0]
    others = [row for row in compared if row["transfer"] == 1]
    if trained and others:
        found.append(
            f"On tasks that the booster was trained on: {_counted(trained, lower_is_better)}. "
            f"On other tasks: {_counted(others, lower_is_better)}."
        )
    sizes = [row["min_detectable"] for row in undecided if is_fraction(row) and row["min_detectable"]]
    if sizes:
        low, high = (f"{100 * size:.1f}" for size in (min(sizes), max(sizes)))
        span = f"{low} points" if low == high else f"{low} to {high} points"
        found.append(
            f"Undecided is not unchanged: these documents show a change of {span} with probability 0.8, "
            "and a smaller one less often."
        )
    return found


def _footnotes(rows: Sequence[Row], compared: Sequence[Row]) -> list[str]:
    found = []
    if compared:
        found.append(
            f"Significant means p < {SIGNIFICANT:g} after Holm's correction over all comparisons of a model in this "
            "report. Intervals are 95% intervals of the change, over documents."
        )
    silent = sum(row["p_holm"] is None for row in rows)
    if silent == 1:
        found.append("1 row has no corrected p-value and makes no claim.")
    elif silent:
        found.append(
            f"{silent:,} rows (other metrics, other strengths, single seeds, or tables of earlier versions) have no "
            "corrected p-value and make no claim."
        )
    return found


def _counted(rows: Sequence[Row], lower_is_better: Collection[str]) -> str:
    found = [outcome(row, lower_is_better) for row in rows]
    gains, losses = _several(found.count("gain"), "gain"), _several(found.count("loss"), "loss", "losses")
    return f"{gains or 'no gain'}, {losses or 'no loss'}, {found.count('open')} undecided"


def _sweeps(rows: Sequence[Row]) -> list[str]:
    found = []
    for name in dict.fromkeys(row["sweep"] for row in rows if "sweep" in row):
        swept = [row for row in rows if row.get("sweep") == name]
        over = over_of(swept)
        seen: set[str] = set()
        for row in swept:
            if row["chosen"] != 1 or row["task"] in seen:
                continue
            seen.add(row["task"])
            tried = len({str(other[over]) for other in swept if other["task"] == row["task"]})
            what = f"layer {row['layers']}" if over == "layers" else f"strength {row['strength']:g}"
            told = finding(row)
            documents = f"{row['development_n']:,} development documents" if row["development_n"] else "development"
            found.append(
                f"Sweep {name}: {documents} chose {what} among {tried}. On test documents of {told.where}: "
                f"{told.means}, {told.change}, {told.evidence}{'' if row['p_holm'] is not None else ', not corrected'}."
            )
    return found


def over_of(rows: Sequence[Row]) -> Literal["layers", "strength"]:
    """What the rows of a sweep differ in."""
    return "layers" if len({row["layers"] for row in rows}) > 1 else "strength"


def _several(count: int, one: str, many: str | None = None) -> str:
    """A number of things; nothing for none."""
    return "" if not count else f"{count:,} {one if count == 1 else many or one + 's'}"
