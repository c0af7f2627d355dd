"""Paired tests on per-document outcomes, corrections, and what a sample could have shown. Knows numbers only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, bootstrap, permutation_test

RESAMPLES = 9999

_ALPHA = 0.05
"""One minus the coverage of intervals."""

_FEW_VALUES = 16
"""Up to so many distinct differences, resamples are drawn as counts of values."""

_EXACT_PAIRS = 12
"""So many documents that differ are flipped in every way, whatever their differences; more are flipped at random."""

_FINEST = 60
"""Differences are tried as multiples of the smallest one, or of a half of it, a third and so on down to this part."""

_LONGEST = 50_000
"""Sums of so many multiples are counted in a second."""

_ROUNDING = 4 * float(np.finfo(float).eps)
"""Relative size of a difference that arithmetic alone can make: a few units in the last place."""


@dataclass(frozen=True)
class Paired:
    """How two runs on the same documents compare on one metric.

    Attributes:
        n: Documents.
        baseline: Mean without the booster: the fraction right, for a 0/1 metric.
        steered: Mean with it.
        gained: Documents wrong before and right after; None where outcomes are not 0 or 1.
        lost: Documents right before and wrong after; None where outcomes are not 0 or 1.
        p_value: Two-sided: exact McNemar test of 0/1 outcomes, sign-flip permutation test of others.
        ci_low: Lower end of the 95% interval of the change, see `paired_interval`; NaN where nothing is known of it.
        ci_high: Its upper end.
        min_detectable: See `min_detectable`.
    """

    n: int
    baseline: float
    steered: float
    gained: int | None
    lost: int | None
    p_value: float
    ci_low: float
    ci_high: float
    min_detectable: float

    @property
    def delta(self) -> float:
        """Change of the mean; zero where it is no more than rounding."""
        change = self.steered - self.baseline
        return change if abs(change) > _ROUNDING * max(abs(self.steered), abs(self.baseline)) else 0.0


def compare(baseline: Sequence[float], steered: Sequence[float], *, means: bool = False) -> Paired:
    """Compares two sequences of outcomes, document by document; those that differ by rounding alone are equal.

    Args:
        baseline: One a document.
        steered: One a document, in the same order.
        means: Outcomes are means of several runs, so that 0 and 1 are not all that they can be.

    Raises:
        ValueError: Different lengths, no documents, or outcomes that are not finite numbers.
    """
    if len(baseline) != len(steered) or not len(baseline):
        raise ValueError(f"paired outcomes need equal, non-zero lengths, not {len(baseline)} and {len(steered)}")
    before, after = np.asarray(baseline, dtype=float), np.asarray(steered, dtype=float)
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise ValueError("paired outcomes must be finite numbers")
    after = np.where(np.abs(after - before) > _ROUNDING * np.maximum(np.abs(after), np.abs(before)), after, before)
    differences = after - before
    if np.ptp(differences) <= _ROUNDING * max(np.abs(after).max(), np.abs(before).max()):
        differences = np.full_like(differences, np.median(differences))  # all the same but for rounding
    gained = lost = None
    right_or_wrong = bool(np.isin(before, (0, 1)).all())
    if not means and right_or_wrong and np.isin(after, (0, 1)).all():
        gained, lost = int((differences > 0).sum()), int((differences < 0).sum())
        p_value = exact_mcnemar(gained, lost)
    else:
        p_value = sign_flip(differences)
    fractions = gained is not None or (means and right_or_wrong and bool(((after >= 0) & (after <= 1)).all()))
    low, high = paired_interval(differences, fractions=fractions)
    return Paired(
        n=len(before),
        baseline=math.fsum(before) / len(before),
        steered=math.fsum(after) / len(after),
        gained=gained,
        lost=lost,
        p_value=p_value,
        ci_low=low,
        ci_high=high,
        min_detectable=min_detectable(differences, fractions=fractions),
    )


def exact_mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact McNemar p-value: the discordant pairs against a fair coin.

    Source: Q. McNemar, Psychometrika 12 (1947), in its exact binomial form. Without discordant pairs p is 1.
    """
    discordant = gained + lost
    return float(binomtest(gained, discordant, 0.5).pvalue) if discordant else 1.0


def sign_flip(differences: Sequence[float] | NDArray[np.float64], seed: int = 0) -> float:
    """Two-sided p-value of the mean difference: the signs of the documents' differences are exchanged.

    All ways to exchange them are counted where the differences are multiples of one number, as means of 0/1 outcomes
    over seeds are, or where at most a dozen documents differ; otherwise `RESAMPLES` random ones and the observed one:
    p is never 0 (Phipson & Smyth 2010). Two-sided p is twice the smaller tail's.

    Args:
        differences: Steered minus baseline, one a document.
        seed: Of the random exchanges.
    """
    values = np.asarray(differences, dtype=float)
    values = values[values != 0]  # their sign changes nothing
    if len(values) < 2:
        return 1.0  # one document may as well have changed the other way
    if (multiples := _multiples(values)) is not None:
        return _exact_sign_flip(multiples)
    total = math.fsum(np.abs(values))
    test = permutation_test(
        (values, np.zeros_like(values)),
        # Rounded, so that sums that are equal but for the order of their terms count as equal.
        lambda left, right, axis: np.round(np.sum(left - right, axis=axis) / total, 12),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**_EXACT_PAIRS if len(values) <= _EXACT_PAIRS else RESAMPLES,
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    return min(1.0, float(test.pvalue))


def _multiples(values: NDArray[np.float64]) -> NDArray[np.int64] | None:
    """Numbers other than zero as multiples of one; None where they are no small multiples of any."""
    relative = values / np.abs(values).min()
    for part in range(1, _FINEST + 1):
        whole = np.round(relative * part)
        if np.abs(whole).sum() > _LONGEST:
            return None
        if np.allclose(relative * part, whole, rtol=1e-9, atol=0):
            return whole.astype(np.int64)
    return None


def _exact_sign_flip(multiples: NDArray[np.int64]) -> float:
    """Of whole numbers: how often a sum with random signs is as far from zero as the observed one.

    A sum with signs is twice that of the positive terms, less the sum of all sizes. Of those of one size, a binomial
    number is positive.
    """
    distribution = np.ones(1)
    for size, count in zip(*np.unique(np.abs(multiples), return_counts=True), strict=True):
        positive = np.zeros(size * count + 1)
        positive[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
        distribution = np.convolve(distribution, positive)
    furthest = (int(np.abs(multiples).sum()) + abs(int(multiples.sum()))) // 2
    return min(1.0, 2.0 * float(distribution[furthest:].sum()))


def paired_interval(
    differences: Sequence[float] | NDArray[np.float64], seed: int = 0, *, fractions: bool = False
) -> tuple[float, float]:
    """95% interval of the mean difference: percentile bootstrap over documents (Efron & Tibshirani 1993, chapter 13).

    Where no two documents differ in their difference d, resampling would show none of the uncertainty. Of n documents
    that are all alike, Clopper & Pearson (Biometrika 26, 1934) bound the fraction of documents at large that are like
    them from below by q = 0.025^(1/n). Outcomes between 0 and 1 can differ by 1 at most in the others, so that the mean
    lies in q * d -+ (1 - q): 0 -+ 1 - q where nothing was gained and nothing lost, about 3.7 / n. Without such a bound
    nothing is known.

    Args:
        differences: Steered minus baseline, one a document.
        seed: Of the resampling.
        fractions: Outcomes lie between 0 and 1.

    Returns:
        Both ends; NaN where nothing is known of them.
    """
    values = np.asarray(differences, dtype=float)
    if np.ptp(values) == 0:
        if not fractions:
            return math.nan, math.nan
        change, others = float(values[0]), 1 - (_ALPHA / 2) ** (1 / len(values))
        return change - others * (1 + change), change + others * (1 - change)
    rng = np.random.default_rng(seed)
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= _FEW_VALUES:
        # How often each value is drawn is multinomial: the same distribution as that of drawing documents, far sooner.
        means = rng.multinomial(len(values), counts / len(values), RESAMPLES) @ distinct / len(values)
        low, high = np.quantile(means, (_ALPHA / 2, 1 - _ALPHA / 2))
        return float(low), float(high)
    interval = bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, batch=500, method="percentile", rng=rng
    ).confidence_interval
    return float(interval.low), float(interval.high)


def min_detectable(
    differences: Sequence[float] | NDArray[np.float64],
    power: float = 0.8,
    alpha: float = 0.05,
    *,
    fractions: bool = True,
) -> float:
    """Smallest change that so many documents would show: with this power, at this two-sided level.

    For 0/1 outcomes of which a fraction v is discordant: n * delta^2 = (z_alpha * sqrt(v) + z_power * sqrt(v -
    delta^2))^2, the sample size of McNemar's test (R. J. Connor, Biometrics 43, 1987); where fewer documents differ
    than the change takes, all that it takes differ in its favour. For others that of the mean, from their variance.

    Args:
        differences: Steered minus baseline, one a document.
        power: Probability of a significant result.
        alpha: Level of the test.
        fractions: Outcomes lie between 0 and 1.

    Returns:
        The change, in the metric's own unit; NaN where no change would do, or nothing is known of the variance.
    """
    values = np.asarray(differences, dtype=float)
    count = len(values)
    z_alpha, z_power = NormalDist().inv_cdf(1 - alpha / 2), NormalDist().inv_cdf(power)
    if not (fractions and np.isin(values, (-1, 0, 1)).all()):
        alike = not np.ptp(values)  # in which case nothing is known of the variance
        return math.nan if alike else float((z_alpha + z_power) * values.std(ddof=1) / math.sqrt(count))
    discordant = float(np.mean(values != 0))

    def surplus(delta: float) -> float:
        spread = max(discordant, delta)
        return delta * math.sqrt(count) - z_alpha * math.sqrt(spread) - z_power * math.sqrt(spread - delta**2)

    return float(brentq(surplus, 1e-9, 1.0)) if surplus(1.0) >= 0 else math.nan


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for so many tests: Holm's step-down procedure.

    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979). An effect stands at level a when its value is below a;
    the probability of one or more false ones is then at most a.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values, dtype=float)[order] * factors))
    corrected = np.empty(len(p_values))
    corrected[order] = adjusted
    return [float(value) for value in corrected]
