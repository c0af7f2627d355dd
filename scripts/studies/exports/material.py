"""What every engine is verified with: the embedded model, boosters of it, and ARC-Easy's choices as rows of tokens.

Knows aft_harness. What an engine gives is compared here with `steered-hf` in float32; no engine is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aft_harness.api import training as api
from aft_harness.boosters.booster import Booster
from aft_harness.boosters.variant import BASELINE, Variant
from aft_harness.demo import model_folder
from aft_harness.engine.scoring import Request
from aft_harness.harness.gold import gold_choices
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.tasks import Tasks
from aft_harness.results.statistics import compare

TASK = "arc_easy"
TRAINING: dict[str, Any] = {"tasks": TASK, "limit": 200, "epochs": 2}
LAYERS = {"all": "all", "upper": "1-", "single": "12"}
"""Boosters by name: of all layers, of all but the first, which llama.cpp's control vectors cannot say, and of one."""

COMPARED = 24
"""Rows whose logits are compared at every position; of the others, the loglikelihood of the continuation."""

_COLUMNS = ("max_logit_difference", "max_score_difference", "logits_moved", "equal_choices", "n")
GAIN_COLUMNS = ("baseline", "delta", "ci_low", "ci_high", "gained", "lost", "p_value")


@dataclass(frozen=True)
class Answers:
    """What an engine gives.

    Attributes:
        scores: The loglikelihood of each row's continuation.
        logits: Of the first `COMPARED` rows, at every position, laid end to end; [positions, vocabulary]. None from an
            engine that gives loglikelihoods only.
    """

    scores: np.ndarray
    logits: np.ndarray | None


class Material:
    """The rows, the boosters, and what `steered-hf` says.

    Attributes:
        folder: Where boosters are kept.
        lm: The model, in float32.
        documents: How many documents of the test split.
    """

    def __init__(self, folder: Path, documents: int) -> None:
        """Loads the model."""
        self.folder, self.documents = folder, documents
        self.lm = SteeredHFLM(str(model_folder()), dtype="float32", batch_size=8)

    @cached_property
    def _built(self) -> tuple[list[Request], list[int], list[tuple[int, ...]]]:
        task = Tasks().leaves([TASK])[TASK]
        task.set_config("num_fewshot", 0)
        task.build_all_requests(limit=self.documents)
        docs = [doc for _, doc in task.doc_iterator(limit=self.documents)]
        requests = [self.lm.encode(*instance.args) for instance in task.instances]
        choices = [task.doc_to_choice(doc) for doc in docs]
        right = [gold_choices(task, doc, each) for doc, each in zip(docs, choices, strict=True)]
        return requests, [len(each) for each in choices], right

    @property
    def rows(self) -> list[tuple[list[int], int]]:
        """Token ids of each choice with its question, and where the choice starts."""
        return [([*each.context, *each.continuation], len(each.context)) for each in self._built[0]]

    def booster(self, name: str) -> Booster:
        """A booster of `LAYERS`, trained on a few documents unless it was before."""
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            api.train(str(model_folder()), layers=LAYERS[name], seed=0, **TRAINING).booster.save(path)
        return Booster.load(path)

    def reference(self, boosters: Mapping[str, Booster]) -> dict[str, Answers]:
        """What `steered-hf` gives under each booster, and `""` without one."""
        variants = [BASELINE, *(Variant(name, booster) for name, booster in boosters.items())]
        scored = self.lm.score_variants(self._built[0], variants)
        answers = {}
        for variant, scores in zip(variants, scored, strict=True):
            logits = self._logits(variant.booster)
            name = "" if variant is BASELINE else variant.name
            answers[name] = Answers(np.array([score for score, _ in scores]), logits)
        return answers

    @torch.no_grad()
    def _logits(self, booster: Booster | None) -> np.ndarray:
        found = []
        for tokens, _ in self.rows[:COMPARED]:
            inputs = torch.tensor([tokens[:-1]])
            if booster is None:
                output = self.lm.model(inputs)
            else:
                with booster.applied_to(self.lm.model):
                    output = self.lm.model(inputs)
            found.append(output.logits[0].float().numpy())
        return np.concatenate(found)

    def compared(self, expected: Answers, given: Answers, unsteered: Answers) -> dict[str, Any]:
        """How far an engine's answers are from those expected, and how far the booster moves them."""
        first, second = self._choices(expected.scores), self._choices(given.scores)
        values = (
            _furthest(expected.logits, given.logits),
            _furthest(expected.scores, given.scores),
            _furthest(expected.logits, unsteered.logits),
            int(sum(a == b for a, b in zip(first, second, strict=True))),
            len(first),
        )
        return dict(zip(_COLUMNS, values, strict=True))

    def gain(self, unsteered: Answers, steered: Answers) -> dict[str, Any]:
        """What the booster gains in an engine, by `acc`, against the same engine and weights without it."""
        before, after = (
            [float(place in right) for place, right in zip(self._choices(answers.scores), self._built[2], strict=True)]
            for answers in (unsteered, steered)
        )
        paired = compare(before, after)
        return {name: getattr(paired, name) for name in GAIN_COLUMNS}

    def _choices(self, scores: Sequence[float] | np.ndarray) -> list[int]:
        """The likeliest choice of each document."""
        bounds = np.cumsum([0, *self._built[1]])
        return [int(np.argmax(scores[a:b])) for a, b in pairwise(bounds)]


def _furthest(first: np.ndarray | None, second: np.ndarray | None) -> float:
    """The largest difference; NaN where one side gives nothing."""
    return float("nan") if first is None or second is None else float(np.abs(first - second).max())
