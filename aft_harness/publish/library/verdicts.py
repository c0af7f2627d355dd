"""Whether a card holds: its claims against results that were measured again.

Knows rows, and when two of them agree. Measures nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from aft_harness.publish.library.publication import Row
from aft_harness.results import table
from aft_harness.results.text import aligned

Outcome = Literal["holds", "does not hold", "not checked"]

TOLERANCE = 0.01
"""On the same documents: how far a score may be off, as a fraction; other hardware and versions round otherwise."""


@dataclass(frozen=True)
class Verdict:
    """What evaluating again says of one claim.

    Attributes:
        claim: The row that the claim is.
        outcome: Whether it holds.
        reason: Why, in a few words.
        found: The row that was measured now; None if it could not be.
    """

    claim: Row
    outcome: Outcome
    reason: str
    found: Row | None = None

    @property
    def cells(self) -> list[str]:
        """What a table of verdicts shows."""
        then = table.cells(self.claim)
        now = table.cells(self.found) if self.found is not None else dict.fromkeys(then, "")
        change = "change [95% interval]"
        metric = then["metric"] if self.claim["strength"] == 1 else f"{then['metric']}, strength {then['strength']}"
        return [then["task"], metric, then["n"], then[change], now["n"], now[change], self.outcome, self.reason]

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain values."""
        return {
            "claim": dict(self.claim),
            "outcome": self.outcome,
            "reason": self.reason,
            "found": None if self.found is None else dict(self.found),
        }


HEADS = ("task", "metric", "n", "on the card", "n now", "now", "verdict", "")


def render(verdicts: Sequence[Verdict]) -> str:
    """Verdicts as an aligned table."""
    left = [head not in ("n", "n now") for head in HEADS]
    return aligned([HEADS, *(verdict.cells for verdict in verdicts)], left)


def judged(claim: Row, found: Row) -> Verdict:
    """Whether a claim agrees with what was measured now.

    On the same documents with the same prompts both scores must be the card's, up to `TOLERANCE` or one document. On
    other documents, such as the first of them, the two changes must agree within their intervals.
    """
    same = claim["documents_sha256"] and claim["documents_sha256"] == found["documents_sha256"]
    if same and claim["prompts_sha256"] and claim["prompts_sha256"] != found["prompts_sha256"]:
        return Verdict(claim, "not checked", "the prompts differ from those on the card", found)
    if same:
        off = {name: found[name] - claim[name] for name in ("baseline", "steered")}
        name = max(off, key=lambda each: abs(off[each]))
        allowed = _allowed(claim, name)
        outcome: Outcome = "holds" if abs(off[name]) <= allowed else "does not hold"
        shown = "equal scores" if off[name] == 0 else f"scores differ by up to {_amount(claim, abs(off[name]))}"
        return Verdict(claim, outcome, f"same documents, {shown}", found)
    halves = [(row["ci_high"] - row["ci_low"]) / 2 if _bounded(row) else math.nan for row in (claim, found)]
    between = abs(found["delta"] - claim["delta"])
    if any(map(math.isnan, halves)):
        return Verdict(claim, "not checked", "other documents, and no interval to compare by", found)
    agree = between <= math.hypot(*halves)
    reason = f"{found['n']} of the documents" if found["n"] < claim["n"] else "other documents"
    return Verdict(claim, "holds" if agree else "does not hold", f"{reason}, compared by intervals", found)


def matched(claim: Row, measured: Sequence[Row], remark: str = "") -> Verdict:
    """The verdict on a claim by that of several rows which is about the same.

    Args:
        claim: The claim.
        measured: What was measured now.
        remark: What is said besides.
    """
    for row in measured:
        if all(row[name] == claim[name] for name in ("task", "metric", "filter", "strength")):
            verdict = judged(claim, row)
            return replace(verdict, reason=f"{verdict.reason} ({remark})") if remark else verdict
    return Verdict(claim, "not checked", "the task has no such metric")


def _bounded(row: Row) -> bool:
    return None not in (row["ci_low"], row["ci_high"])


def _allowed(claim: Row, name: str) -> float:
    """How far a score may be off."""
    if table.is_fraction(claim):
        return max(TOLERANCE, 1 / claim["n"]) + 1e-12
    return TOLERANCE * max(abs(claim[name]), 1e-12)


def _amount(claim: Row, value: float) -> str:
    return f"{100 * value:.1f} points" if table.is_fraction(claim) else f"{value:.2g}"
