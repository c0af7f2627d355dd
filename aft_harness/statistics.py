"""Paired tests on per-document outcomes. Knows numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, bootstrap

RESAMPLES = 9999


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
        ci_low: Lower end of the 95% interval of the change, paired bootstrap over documents.
        ci_high: Its upper end.
    """

    n: int
    baseline: float
    steered: float
    gained: int
    lost: int
    p_value: float
    ci_low: float
    ci_high: float

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


def paired_interval(differences: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95% interval of the mean difference: percentile bootstrap over documents (Efron & Tibshirani 1993, chapter 13).

    Args:
        differences: Steered minus baseline, one a document.
        seed: Of the resampling.

    Returns:
        Both ends; the mean itself twice where no two documents differ in their difference.
    """
    values = np.asarray(differences, dtype=float)
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    interval = bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, batch=500, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return float(interval.low), float(interval.high)


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
    interval = paired_interval([after - before for before, after in zip(baseline, steered, strict=True)])
    return PairedCount(n, sum(baseline) / n, sum(steered) / n, gained, lost, exact_mcnemar(gained, lost), *interval)
