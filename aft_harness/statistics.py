"""Paired tests on per-document outcomes. Knows numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest


@dataclass(frozen=True)
class PairedCount:
    """How two runs on the same documents compare on a 0/1 metric.

    Attributes:
        n: Documents.
        baseline: Fraction right without the booster.
        steered: Fraction right with it.
        gained: Documents wrong before and right after.
        lost: Documents right before and wrong after.
        p_value: Exact two-sided McNemar test.
    """

    n: int
    baseline: float
    steered: float
    gained: int
    lost: int
    p_value: float

    @property
    def delta(self) -> float:
        """Change of the fraction right."""
        return self.steered - self.baseline


def exact_mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact McNemar p-value: the discordant pairs against a fair coin.

    Source: Q. McNemar, Psychometrika 12 (1947), in its exact binomial form. Without discordant pairs p is 1.
    """
    discordant = gained + lost
    return float(binomtest(gained, discordant, 0.5).pvalue) if discordant else 1.0


def compare(baseline: Sequence[float], steered: Sequence[float]) -> PairedCount:
    """Compares two sequences of 0/1 outcomes, document by document.

    Raises:
        ValueError: Different lengths, no documents, or outcomes that are not 0 or 1.
    """
    if len(baseline) != len(steered) or not baseline:
        raise ValueError(f"paired outcomes need equal, non-zero lengths, not {len(baseline)} and {len(steered)}")
    if not set(baseline) | set(steered) <= {0, 1}:
        raise ValueError("the exact McNemar test needs outcomes of 0 or 1")
    gained = sum(1 for before, after in zip(baseline, steered, strict=True) if after > before)
    lost = sum(1 for before, after in zip(baseline, steered, strict=True) if after < before)
    n = len(baseline)
    return PairedCount(n, sum(baseline) / n, sum(steered) / n, gained, lost, exact_mcnemar(gained, lost))
