"""What tests of the harness floor share: the toy tasks, requests, boosters and how examples are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance

from aft_harness.boosters.booster import Booster
from aft_harness.harness.examples import TaskExamples, draw
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.selection import PromptFormat, TaskSelection
from aft_harness.harness.tasks import Tasks

TOYS = str(Path(__file__).parents[1] / "toy_tasks")
TEXTS = [
    ("The child opens the door", " and sits down"),
    ("The child opens the door", " and walks to school"),
    ("The child opens the door", " and walks"),
    ("She looks around the room.", " light"),
    ("She looks around the room.", " water"),
    ("", "Plants need water"),
    ("The child opens the door", " and sits down"),
    ("Question: what is it? Answer: ", "an apple"),
]


def requests(kind: str = "loglikelihood", texts: Any = TEXTS) -> list[Instance]:
    """Requests of no task."""
    return [Instance(kind, {}, tuple(args), index) for index, args in enumerate(texts)]


def booster(layer: int = 1, seed: int = 7, **provenance: Any) -> Booster:
    """A booster of the tiny models, with a random vector."""
    generator = torch.Generator().manual_seed(seed)
    return Booster.static({layer: torch.randn(32, generator=generator)}, provenance)


def drawn(
    name: str,
    lm: SteeredHFLM,
    prompt_format: PromptFormat | None = None,
    *,
    source: Tasks | None = None,
    split_seed: int = 0,
    **selection: Any,
) -> TaskExamples:
    """Examples of one toy task."""
    source = source or Tasks([TOYS])
    (found,) = draw([TaskSelection(name, **selection)], lm, prompt_format, source=source, split_seed=split_seed)
    return found
