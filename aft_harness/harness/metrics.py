"""What lm-eval knows of metrics. Knows names only."""

from __future__ import annotations

from collections.abc import Iterable


def lower_is_better(metrics: Iterable[str]) -> frozenset[str]:
    """Those metrics of which a lower value is the better one."""
    from lm_eval.api.registry import is_higher_better

    return frozenset(metric for metric in set(metrics) if is_higher_better(metric) is False)
