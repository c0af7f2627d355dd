"""What every method of the comparison comes to: loglikelihoods of requests, and what they took.

Knows boosters and the packed engine. Knows no method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.variant import BASELINE, Variant

BUDGET = 600.0
"""Seconds that a training may take on one core; one that takes longer is stopped there."""
EPOCHS, BATCH_SIZE = 3, 8
ALONE = ", choices alone"
"""Ends the names of methods that minimise `choice`, and not the recipe's `both`."""
Scorer = Callable[[Sequence[Any]], list[float]]


@dataclass
class Fitted:
    """A method after its training.

    Attributes:
        score: Gives the loglikelihoods of requests.
        parameters: Numbers that were learned.
        file_bytes: Size of the file that is shared.
        seconds: Of the training that was kept.
        tried: The settings that development documents chose from, with their losses.
        shots: Few-shot examples in the prompts.
    """

    score: Scorer
    parameters: int = 0
    file_bytes: int = 0
    seconds: float = 0.0
    tried: list[dict[str, Any]] = field(default_factory=list)
    shots: int = 0


Method = Callable[[str, int, Path], Fitted]
"""Learns a task with a seed; files go to a folder."""


def scorer(lm: Any, booster: Booster | None = None) -> Scorer:
    """Loglikelihoods by the packed engine."""
    variant = Variant("method", booster) if booster else BASELINE
    return lambda requests: [score for score, _ in lm.score_variants(list(requests), [variant])[0]]


def save(booster: Booster, folder: Path, name: str) -> Path:
    """Writes a booster into the folder of the comparison's boosters."""
    path = folder / "boosters" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    booster.save(path)
    return path


def best(tried: Sequence[Mapping[str, Any]]) -> int:
    """The setting that was right on most development documents; of equals, the one with the lowest loss."""
    return min(
        range(len(tried)), key=lambda index: (-tried[index]["development_accuracy"], tried[index]["development_loss"])
    )
