"""The documents of a study of one task: what is learned from, and what settings are chosen by.

Knows that development documents may come from a split which nothing evaluates: the library carves them from the very
rows that training documents come from. Everything else is `aft_harness.harness.examples.draw`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from aft_harness.harness.examples import TaskExamples, draw
from aft_harness.harness.selection import TaskSelection
from aft_harness.harness.suites import folder
from aft_harness.harness.tasks import Tasks


def training_and_development(lm: Any, task: str, limit: int, development: str | int) -> TaskExamples:
    """Examples of a task, without development documents whose question is learned from.

    Args:
        lm: A `SteeredHFLM`.
        task: Its name.
        limit: Training documents at most.
        development: Rows of another split, as `SPLIT[a:b]`, or how many documents are carved from the training split.
    """
    source = Tasks([folder()])
    if isinstance(development, int):
        return draw([TaskSelection(task, limit=limit, dev_docs=development)], lm, source=source)[0]
    (training,) = draw([TaskSelection(task, limit=limit)], lm, source=source)
    every = TaskSelection(task, train_docs=development, dev_docs=10**6, development_only=True)
    (others,) = draw([every], lm, source=source)
    learned = {example.document for example in training.train}
    kept = [example for example in others.development if example.document not in learned]
    return replace(training, development=kept)
