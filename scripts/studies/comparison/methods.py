"""The methods of the comparison by name: each learns from a task's training documents and then scores requests.

All that have a gradient minimise both losses of the recipe, and once, for comparison, the ranking of the choices alone.
Knows prompting and boosters; PEFT's methods stand in `adapters.py`, those of other packages in `packages.py`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from comparison.adapters import RATES, adapter
from comparison.exams import learned_from, load
from comparison.fitted import ALONE, Fitted, Method, save, scorer
from comparison.packages import directions, loreft

from aft_harness.training.recipe import RECIPES
from aft_harness.training.train import train

FEWER = (10, 30, 100, 300)
"""Training documents of the curve."""
PLENTY = "ours, 600 documents"
"""What a plain `aft train` learns from, where the comparison's budget allows fewer."""


def zero_shot(task: str, seed: int, folder: Path) -> Fitted:
    """The unchanged model."""
    return Fitted(scorer(load()))


def few_shot(task: str, seed: int, folder: Path) -> Fitted:
    """Five examples in the prompt."""
    return Fitted(scorer(load()), shots=5)


def ours(task: str, seed: int, folder: Path, **changes: Any) -> Fitted:
    """`aft train` with its defaults, or some of them changed; no setting is chosen for the task."""
    lm = load()
    examples = learned_from(lm, task, changes.pop("limit", None))
    # The default recipe when these comparisons were made; since then it leaves out layer 0 and keeps to the model.
    settings = replace(RECIPES["default"], **{"layers": "all", "keep": 0.0, "seed": seed, **changes})
    # Development documents are measured, but choose nothing: a plain `aft train` has none.
    result = train(lm, [replace(examples, development=[])], settings)
    booster = result.booster
    path = save(booster, folder, f"ours-{task}-{seed}-{booster.sha256[:8]}")
    return Fitted(scorer(lm, booster), booster.parameters, path.stat().st_size, result.seconds)


METHODS: dict[str, Method] = {
    "zero-shot": zero_shot,
    "five-shot": few_shot,
    "ours": ours,
    f"ours{ALONE}": partial(ours, objective="choice"),
    "ours, one layer": partial(ours, layers=(8,)),
    **{f"ours, {count} documents": partial(ours, limit=count) for count in FEWER},
    PLENTY: partial(ours, limit=600),
    **{name: adapter(name, rates) for name, rates in RATES.items()},
    "LoReFT (pyreft)": loreft,
    **{f"{name}{ALONE}": adapter(name, rates, "choice") for name, rates in RATES.items()},
    f"LoReFT (pyreft){ALONE}": partial(loreft, objective="choice"),
    "repeng": directions("repeng", "repeng==0.4.0"),
    "steering-vectors": directions("steering-vectors", "steering-vectors==0.12.2"),
}
