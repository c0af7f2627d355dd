"""The documents of the comparison: what is learned from, what choices are made by, and what is reported on.

Knows tasks, rows and the embedded model. Knows no method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from documents import training_and_development

from aft_harness.demo import model_folder
from aft_harness.engine.scoring import Request
from aft_harness.harness.examples import TaskExamples
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.suites import folder
from aft_harness.harness.tasks import FEWSHOT_SEED, Tasks

CELLS = Path(__file__).parents[3] / "leaderboards" / "comparison" / "cells"
"""Where the outcome of each document is kept, of every method, task and seed that is done."""
LEARN = {"arc_easy": 594, "hellaswag": 200, "gsm8k_easy": 600}
"""Training documents of each task, at most."""
DEVELOP: dict[str, str | int] = {"arc_easy": "validation[0:300]", "hellaswag": 200, "gsm8k_easy": "validation[0:200]"}
"""Development documents: rows of a split that nothing evaluates, or so many that are carved from the training split."""
EXAMS = {
    "arc_easy": ("arc_easy", 400, 1188),
    "arc_easy 0-399": ("arc_easy", 0, 400),
    "hellaswag": ("hellaswag", 1000, 3000),
    "hellaswag WikiHow": ("hellaswag", 4100, 5042),
    "gsm8k_easy": ("gsm8k_easy", 0, 500),
}
"""Test documents by name: the task and its rows. HellaSwag's validation split begins with captions of videos
(ActivityNet); the rows that the methods learn from, and its later rows, are passages of WikiHow, more than twice as
long."""
ELSEWHERE = {"hellaswag": 400, "hellaswag WikiHow": 0}
"""So many of the HellaSwag documents are asked of a method that did not learn from HellaSwag."""
PASSAGES = (4000, 4100)
"""Rows of HellaSwag's validation split whose contexts and right endings are the plain text."""


def load() -> SteeredHFLM:
    """A fresh copy of the model."""
    return SteeredHFLM(str(model_folder()), dtype="bfloat16", softmax_dtype="float32", batch_size=16, device="cpu")


def learned_from(lm: Any, task: str, limit: int | None = None) -> TaskExamples:
    """Training and development examples of a task."""
    return training_and_development(lm, task, limit or LEARN[task], DEVELOP[task])


@dataclass(frozen=True)
class Exam:
    """Test documents as requests, and lm-eval's code that grades them."""

    requests: list[Request]
    documents: list[tuple[Any, int]]
    task: Any

    def grade(self, loglikelihoods: Sequence[float]) -> dict[str, list[float]]:
        """Outcome of each document by metric."""
        outcomes: dict[str, list[float]] = {"acc": [], "acc_norm": []}
        scores = iter(loglikelihoods)
        for doc, choices in self.documents:
            graded = self.task.process_results(doc, [(next(scores), False) for _ in range(choices)])
            for metric, values in outcomes.items():
                values.append(float(graded[metric]))
        return outcomes


@cache
def exam(name: str, shots: int, count: int | None) -> Exam:
    """The documents of an exam, formatted by lm-eval; the first `count` of them."""
    task, start, stop = EXAMS[name]
    rows = set(range(start, stop if count is None else start + count))
    loaded = Tasks([folder()]).leaves([task])[task]
    loaded.set_config("num_fewshot", shots)
    loaded.set_fewshot_seed(FEWSHOT_SEED)
    loaded.build_all_requests(samples=rows)
    documents = [(doc, len(loaded.doc_to_choice(doc))) for _, doc in loaded.doc_iterator(samples=rows)]
    requests = [encoder().encode(*instance.args) for instance in loaded.instances]
    return Exam(requests, documents, loaded)


@cache
def encoder() -> SteeredHFLM:
    """A model that only ever tokenises."""
    return load()


@cache
def passages() -> list[Request]:
    """Plain text, to be predicted from its first token."""
    loaded = Tasks().leaves(["hellaswag"])["hellaswag"]
    texts = []
    for doc in loaded.validation_docs().select(range(*PASSAGES)):
        tokens = encoder().tok_encode(f"{doc['query']} {doc['choices'][int(doc['gold'])]}")
        texts.append(Request((tokens[0],), tuple(tokens[1:])))
    return texts


def perplexity(score: Callable[[Sequence[Any]], list[float]], texts: Sequence[Request]) -> float:
    """Of texts, by their summed loglikelihoods; the mean is over tokens.

    The task `plain_text` measures the same passages, in bits for each byte. The cells of this comparison were published
    before there was that task, and many methods here are no boosters, so that the perplexity stays: new cells must be
    comparable with published ones.
    """
    return math.exp(-sum(score(texts)) / sum(len(text.continuation) for text in texts))


def exams_of(task: str) -> dict[str, int | None]:
    """The exams of a method that learned a task, and how many of their documents; None means all."""
    counts = {name: None if task == "hellaswag" else ELSEWHERE.get(name) for name in EXAMS}
    return {name: count for name, count in counts.items() if count != 0}
