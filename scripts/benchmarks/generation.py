"""Greedy generation of texts, against lm-eval's `hf`."""

from __future__ import annotations

import statistics
import time
from typing import Any

from material import model, requests
from timing import Measured, Outcome, alternate, median


def greedy(task: str, shots: int, docs: int, reps: int) -> Outcome:
    """The texts of one task; agreement is the share of equal texts."""
    ours, theirs = model("steered-hf", "float32"), model("hf", "float32")
    asked, _ = requests(task, shots, docs)

    def run(lm: Any) -> Measured:
        start = time.perf_counter()
        texts = lm.generate_until(asked, disable_tqdm=True)
        return Measured(time.perf_counter() - start, texts)

    first, second = alternate(lambda: run(ours), lambda: run(theirs), reps)
    same = [float(left == right) for left, right in zip(first[0].results, second[0].results, strict=True)]
    return Outcome("hf", "float32", docs, median(first), median(second), agreement=statistics.mean(same))
