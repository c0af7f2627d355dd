from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import comb

import numpy as np
import pytest
from scipy.stats import binom, binomtest, ttest_1samp
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from aft_harness.results import statistics
from aft_harness.results.statistics import (
    RESAMPLES,
    compare,
    exact_mcnemar,
    holm,
    min_detectable,
    paired_interval,
    sign_flip,
)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 5), (13, 55), (107, 28), (3, 0)])
def test_mcnemar_is_the_sum_of_all_splits_that_are_no_likelier(gained: int, lost: int) -> None:
    n = gained + lost
    if n:
        likely = comb(n, gained)
        by_hand = sum(comb(n, k) for k in range(n + 1) if comb(n, k) <= likely) / 2**n
        assert exact_mcnemar(gained, lost) == pytest.approx(by_hand, rel=1e-9)
        assert exact_mcnemar(gained, lost) == pytest.approx(binomtest(lost, n).pvalue, rel=1e-12)
    else:
        assert exact_mcnemar(gained, lost) == 1.0


def test_compare_counts_document_by_document() -> None:
    result = compare([1, 1, 0, 0, 0], [1, 0, 1, 1, 0])
    assert (result.n, result.gained, result.lost) == (5, 2, 1)
    assert (result.baseline, result.steered, result.delta) == pytest.approx((0.4, 0.6, 0.2))
    assert result.p_value == exact_mcnemar(2, 1)


def test_the_interval_is_that_of_resampled_documents() -> None:
    before = [0] * 60 + [1] * 140
    after = [1] * 30 + [0] * 30 + [1] * 130 + [0] * 10
    result = compare(before, after)
    rng = np.random.default_rng(1)
    differences = np.array(after) - np.array(before)
    means = rng.choice(differences, (20000, 200)).mean(axis=1)
    assert (result.ci_low, result.ci_high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.006)


def test_the_interval_of_documents_that_were_only_gained_is_that_of_a_binomial() -> None:
    result = compare([0] * 500, [1] * 90 + [0] * 410)
    ends = tuple(binom(500, 90 / 500).ppf([0.025, 0.975]) / 500)
    assert (result.ci_low, result.ci_high) == pytest.approx(ends, abs=0.0021)  # one document


def test_the_interval_of_a_measured_quantity_is_that_of_its_mean() -> None:
    differences = np.random.default_rng(3).normal(0.2, 1.0, 400)
    mean, spread = differences.mean(), differences.std() / 20
    low, high = paired_interval(differences)
    assert (low, high) == pytest.approx((mean - 1.96 * spread, mean + 1.96 * spread), abs=0.01)


def clopper_pearson(count: int, n: int) -> tuple[float, float]:
    return tuple(binomtest(count, n).proportion_ci(0.95, "exact"))  # type: ignore[return-value]


@pytest.mark.parametrize("n", [1, 2, 7, 12, 400])
def test_documents_that_are_all_alike_leave_what_their_number_allows(n: int) -> None:
    before = [place % 2 for place in range(n)]
    fewest, most = clopper_pearson(0, n)
    unchanged = compare(before, before)
    assert fewest == 0.0 and (unchanged.ci_low, unchanged.ci_high) == pytest.approx((-most, most))
    lowest, highest = clopper_pearson(n, n)
    gained, lost = compare([0] * n, [1] * n), compare([1] * n, [0] * n)
    assert (gained.ci_low, gained.ci_high) == pytest.approx((lowest - most, highest))
    assert (lost.ci_low, lost.ci_high) == pytest.approx((-highest, most - lowest))
    # Pooled seeds are fractions, too; whole documents may differ.
    pooled = compare(before, [float(outcome) for outcome in before], means=True)
    assert (pooled.ci_low, pooled.ci_high) == pytest.approx((-most, most))


def test_an_interval_without_a_discordant_document_holds_the_change_often_enough() -> None:
    rng = np.random.default_rng(0)
    for gain, loss, n in [(0.05, 0.0, 20), (0.0, 0.02, 50), (0.01, 0.01, 100), (0.3, 0.1, 5)]:
        missed = 0
        for counts in rng.multinomial(n, [gain, loss, 1 - gain - loss], size=4000):
            if counts[2] == n:  # all other draws are the bootstrap's
                low, high = paired_interval(np.zeros(n), fractions=True)
                missed += not low <= gain - loss <= high
        assert missed / 4000 <= 0.05


def test_nothing_is_known_of_numbers_that_all_change_alike() -> None:
    for shift in (0.0, 0.1):
        result = compare([2.25, 0.5, 7.75], [2.25 + shift, 0.5 + shift, 7.75 + shift])
        assert result.delta == pytest.approx(shift) and result.gained is None
        assert np.isnan([result.ci_low, result.ci_high, result.min_detectable]).all()


@pytest.mark.parametrize(("before", "after"), [([1], [1, 0]), ([], []), ([0.5], [float("nan")])])
def test_compare_refuses_what_is_not_paired(before: list[float], after: list[float]) -> None:
    with pytest.raises(ValueError, match="outcomes"):
        compare(before, after)


def test_means_are_compared_by_exchanging_signs() -> None:
    before, after = [0.2, 0.4, 0.6, 0.9, 0.5], [0.5, 0.3, 0.9, 0.9, 0.8]
    result = compare(before, after)
    assert (result.gained, result.lost) == (None, None)
    assert result.p_value == pytest.approx(brute_sign_flip([0.3, -0.1, 0.3, 0.0, 0.3]))
    pooled = compare([0, 1, 0], [1, 1, 1], means=True)
    assert pooled.gained is None and pooled.p_value == pytest.approx(0.5)


def brute_sign_flip(differences: list[float]) -> float:
    observed = abs(sum(differences))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in flips(len(differences))]
    return sum(total >= observed - 1e-12 for total in sums) / len(sums)


def flips(count: int) -> Iterator[tuple[int, ...]]:
    return product((-1, 1), repeat=count)


@pytest.mark.parametrize("count", [1, 2, 4, 9, 12])
def test_few_differences_are_exchanged_in_every_way(count: int) -> None:
    differences = np.random.default_rng(count).normal(0.4, 1, count).round(2)
    assert sign_flip(differences) == pytest.approx(brute_sign_flip(list(differences)))


def test_many_differences_are_exchanged_at_random() -> None:
    differences = np.random.default_rng(0).normal(0.15, 1, 200)
    # With so many documents the exact test is the t-test's near twin.
    assert sign_flip(differences) == pytest.approx(ttest_1samp(differences, 0).pvalue, abs=0.01)
    away = 10 + np.random.default_rng(1).random(100)
    assert sign_flip(away) == pytest.approx(2 / (RESAMPLES + 1))
    assert sign_flip([0.0, 0.0]) == 1.0 == sign_flip([])


@pytest.mark.parametrize("unit", [1.0, 1 / 3, 0.1, 1e-9])
def test_multiples_of_one_number_are_exchanged_in_every_way(unit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_EXACT_PAIRS", 0)
    for seed in range(5):
        whole = np.random.default_rng(seed).integers(-3, 6, 14)
        assert sign_flip(whole * unit) == pytest.approx(brute_sign_flip([float(each) for each in whole]))
    # One size is McNemar's exact test.
    assert sign_flip(unit * np.array([1] * 40 + [-1] * 11)) == pytest.approx(exact_mcnemar(40, 11))
    assert sign_flip(unit * np.ones(400)) == pytest.approx(2.0**-399)
    assert sign_flip(unit * np.array([1, -1, 2, -2])) == 1.0


def test_many_multiples_agree_with_random_exchanges(monkeypatch: pytest.MonkeyPatch) -> None:
    # Means over three seeds, of a thousand documents.
    differences = np.random.default_rng(3).integers(-3, 4, 1000) / 3 + 0.0
    differences[:160] = 1 / 3
    exact = sign_flip(differences)
    monkeypatch.setattr(statistics, "_LONGEST", 0)
    assert 0.001 < exact < 0.9 and exact == pytest.approx(sign_flip(differences), abs=0.02)


def test_rounding_is_no_effect() -> None:
    before = np.random.default_rng(0).normal(size=60)
    after = np.nextafter(before, np.inf)
    result = compare(before.tolist(), after.tolist())
    assert (result.delta, result.p_value) == (0.0, 1.0)
    # The order of documents does not matter, in which a sum of floats differs.
    assert compare([0.1, 0.2, 0.3, 0.7], [0.3, 0.7, 0.2, 0.1]).delta == 0.0
    assert compare([0.1, 0.2], [0.15, 0.15]).delta == 0.0
    # A change that is small but no rounding stays one.
    assert compare(before.tolist(), (before + 1e-12).tolist()).p_value < 0.001


def test_sums_in_another_order_are_ties() -> None:
    whole = [-64, 214, 32, -280, 158, 137, 207, -403]  # integers, whose sums have no rounding
    for factor in (0.1, 1 / 3, 1e-9, 7e11):
        assert sign_flip(np.array(whole) * factor) == sign_flip(whole) == pytest.approx(brute_sign_flip(whole))


@pytest.mark.parametrize("p_values", [[0.01, 0.04, 0.03, 0.005], [0.5], [0.2, 0.2, 0.9, 0.001, 0.03, 1.0], []])
def test_holm_is_the_step_down_of_its_definition(p_values: list[float]) -> None:
    expected = [
        min(1.0, max((len(p_values) - rank) * p for rank, p in enumerate(sorted(p_values)) if p <= own))
        for own in p_values
    ]
    assert holm(p_values) == pytest.approx(expected)
    if p_values:
        assert holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]))


@pytest.mark.parametrize(("count", "discordant"), [(200, 0.2), (788, 0.3), (788, 0.05)])
def test_a_detectable_change_is_detected_so_often(count: int, discordant: float) -> None:
    differences = np.zeros(count)
    differences[: int(count * discordant)] = np.resize([1, -1], int(count * discordant))
    delta = min_detectable(differences)
    rng = np.random.default_rng(0)
    gains = (discordant + delta) / 2
    drawn = rng.choice([1, -1, 0], size=(4000, count), p=[gains, discordant - gains, 1 - discordant])
    z = drawn.sum(axis=1) / np.sqrt(np.maximum(1, (drawn != 0).sum(axis=1)))
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(0.8, abs=0.03)


def test_what_can_be_detected_without_a_difference_yet() -> None:
    assert 0.03 < min_detectable(np.zeros(200)) < 0.06  # about eight documents, all in one direction
    assert np.isnan(min_detectable([0.0])) and np.isnan(min_detectable([0.3]))
    values = np.random.default_rng(0).normal(0, 2, 100)
    expected = TTestPower().solve_power(nobs=100, alpha=0.05, power=0.8) * values.std(ddof=1)
    assert min_detectable(values) == pytest.approx(expected, rel=0.02)
