"""What each phase trains and evaluates: the plans of `aft transfer`. Knows tasks and numbers, and loads no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aft_harness.harness.suites import folder
from aft_harness.studies.plan import Plan

LEARNED = {"gsm8k_easy": 600, "arc_easy": 300}
"""Rows of each training split, from the first, that boosters of home-made models learn from; their text has none."""

MIXTURES = Path(__file__).parents[1] / "leave_one_out.yaml"
"""The plan of the universal booster: five of six tasks are learned, and all are evaluated."""


@dataclass(frozen=True)
class Size:
    """How much of a phase is run.

    Attributes:
        seeds: Of trainings.
        train: Training documents of a task, at most; None is what the phase's plan says.
        test: Test documents of a task, at most; None is what the phase's plan says.
    """

    seeds: Sequence[int] = (0, 1, 2)
    train: int | None = None
    test: int | None = None


def specialists(model: Mapping[str, Any], size: Size) -> Plan:
    """One booster a task, as in the library of the package.

    ARC-Easy's test rows 0-399 were looked at while the recipe was chosen, on another model: the others are reported.
    """
    content = {
        "train": {"gsm8k_easy": {"gsm8k_easy": {}}, "arc_easy": {"arc_easy": {}}},
        "evaluate": {"gsm8k_easy": {}, "arc_easy": {"docs": "400:1188"}, "plain_text": {}},
    }
    return _sized(Plan.of({**_common(model), **content}), size)


def mixtures(model: Mapping[str, Any], size: Size) -> Plan:
    """All tasks but one are learned, and all of them."""
    return _sized(Plan.read(MIXTURES, [model]), size)


def home_made(model: Mapping[str, Any], size: Size) -> Plan:
    """As `specialists`, of the rows that the model's text does not have; all of the test documents are new to it."""
    content = {
        "train": {task: {task: {"train_docs": f"train[0:{rows}]"}} for task, rows in LEARNED.items()},
        "evaluate": {"gsm8k_easy": {}, "arc_easy": {}, "plain_text": {}},
    }
    return _sized(Plan.of({**_common(model), **content}), size)


def _common(model: Mapping[str, Any]) -> dict[str, Any]:
    return {"models": [model], "include_path": [str(folder())]}


def _sized(plan: Plan, size: Size) -> Plan:
    """A plan with other seeds and fewer documents."""
    sources = plan.sources
    if size.train is not None:
        sources = {
            name: tuple(replace(each, limit=min(size.train, each.limit or size.train)) for each in selections)
            for name, selections in sources.items()
        }
    evaluations = plan.evaluations
    if size.test is not None:
        evaluations = tuple(_fewer(each, size.test) for each in evaluations)
    return replace(plan, sources=sources, evaluations=evaluations, seeds=tuple(size.seeds))


def _fewer(evaluation: Any, count: int) -> Any:
    if evaluation.slice is None:
        return replace(evaluation, limit=min(count, evaluation.limit or count))
    start, stop = evaluation.slice.start, evaluation.slice.stop
    last = start + count if stop is None else min(stop, start + count)
    return replace(evaluation, docs=f"{start}:{last}")
