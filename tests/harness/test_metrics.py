from __future__ import annotations

from aft_harness.harness.metrics import lower_is_better


def test_metrics_of_which_less_is_better() -> None:
    assert lower_is_better(["acc", "bits_per_byte", "word_perplexity", "acc", "unheard_of"]) == {
        "bits_per_byte",
        "word_perplexity",
    }
