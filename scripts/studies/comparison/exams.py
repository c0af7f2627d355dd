"""The documents of the comparison: what is learned from, what choices are made by, and what is reported on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from explore import examples_of

from aft_harness.demo import model_folder
from aft_harness.engine.scoring import Request
from aft_harness.harness.examples import FEWSHOT_SEED, TaskSelection, load_tasks
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.suites import folder

CELLS = Path(__file__).parents[2] / "leaderboards" / "comparison" / "cells"
"""Where the outcome of each document is kept, of every method, task and seed that is done."""
LEARN = {"arc_easy": 594, "hellaswag": 200, "gsm8k_easy": 600}
"""Training documents of each task, at most."""
DEVELOP = {"arc_easy": "validation[0:300]", "hellaswag": 200, "gsm8k_easy": "validation[0:200]"}
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


def drawn(lm: Any, task: str, limit: int | None = None) -> Any:
    """Training and development examples of a task."""
    develop = DEVELOP[task]
    how = {"development": develop} if isinstance(develop, str) else {"dev_docs": develop}
    return examples_of({"task": task, **how}, limit or LEARN[task], lm)


@dataclass(frozen=True)
class Exam:
    """Test documents as requests, and lm-eval's own code that grades them."""

    requests: list[Any]
    documents: list[tuple[Any, int]]
    task: Any

    def grade(self, loglikelihoods: Sequence[float]) -> dict[str, list[float]]:
        """Outcome of each document by metric."""
        found: dict[str, list[float]] = {"acc": [], "acc_norm": []}
        scores = iter(loglikelihoods)
        for doc, choices in self.documents:
            graded = self.task.process_results(doc, [(next(scores), False) for _ in range(choices)])
            for metric, values in found.items():
                values.append(float(graded[metric]))
        return found


@cache
def exam(name: str, shots: int, count: int | None) -> Exam:
    """The documents of an exam, formatted by lm-eval; the first `count` of them."""
    task, start, stop = EXAMS[name]
    stop = stop if count is None else start + count
    ((_, loaded),) = load_tasks([TaskSelection(task)], [str(folder())])
    loaded.set_config("num_fewshot", shots)
    loaded.set_fewshot_seed(FEWSHOT_SEED)
    loaded.build_all_requests(samples=set(range(start, stop)))
    lm = encoder()
    requests, documents = [], []
    for _, doc in loaded.doc_iterator(samples=set(range(start, stop))):
        documents.append((doc, len(loaded.doc_to_choice(doc))))
    for instance in loaded.instances:
        requests.append(lm.encode(*instance.args))
    return Exam(requests, documents, loaded)


@cache
def encoder() -> Any:
    """A model that only ever tokenises."""
    return load()


@cache
def passages(lm: Any = None) -> list[Any]:
    """Plain text, to be predicted from its first token."""
    ((_, loaded),) = load_tasks([TaskSelection("hellaswag")])
    lm = lm or encoder()
    texts = []
    for doc in loaded.validation_docs().select(range(*PASSAGES)):
        tokens = lm.tok_encode(f"{doc['query']} {doc['choices'][int(doc['gold'])]}")
        texts.append(Request((tokens[0],), tuple(tokens[1:])))
    return texts


def perplexity(score: Callable[[Sequence[Any]], list[float]], texts: Sequence[Any]) -> float:
    """Of texts, by their summed loglikelihoods; the mean is over tokens."""
    return math.exp(-sum(score(texts)) / sum(len(text.continuation) for text in texts))


def asked(task: str) -> dict[str, int | None]:
    """The exams of a method that learned a task, and how many of their documents; None means all."""
    counts = {name: None if task == "hellaswag" else ELSEWHERE.get(name) for name in EXAMS}
    return {name: count for name, count in counts.items() if count != 0}
