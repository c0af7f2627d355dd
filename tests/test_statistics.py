from __future__ import annotations

from math import comb

import numpy as np
import pytest
from scipy.stats import binomtest

from aft_harness.statistics import compare, exact_mcnemar


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
    same = compare([1, 0], [1, 0])
    assert (same.ci_low, same.ci_high) == (0, 0)


@pytest.mark.parametrize(("before", "after"), [([1], [1, 0]), ([], []), ([0.5], [1]), ([0, 1], [1, 2])])
def test_compare_refuses_what_is_not_paired_or_not_binary(before: list[float], after: list[float]) -> None:
    with pytest.raises(ValueError, match="outcomes"):
        compare(before, after)
