"""The rows that training draws from: their order, and the questions that they share."""

from __future__ import annotations

import hashlib
import random
import re
import unicodedata
from types import SimpleNamespace
from typing import Any

import pytest

from aft_harness.boosters.documents import text_hash
from aft_harness.harness.selection import TaskSelection
from aft_harness.harness.splits import TrainingRows


def task(train: list[str], test: list[str]) -> Any:
    """What `TrainingRows` needs of a task object."""
    split = {name: [{"question": text} for text in texts] for name, texts in (("train", train), ("test", test))}
    return SimpleNamespace(
        config=SimpleNamespace(training_split="train", validation_split=None, test_split="test", process_docs=None),
        dataset=split,
        eval_docs=split["test"],
        has_training_docs=lambda: True,
        doc_to_text=lambda doc: f"Question: {doc['question']}",
    )


def drawn(train: list[str], test: list[str]) -> TrainingRows:
    return TrainingRows(task(train, test), TaskSelection("toy"))


def published(texts: list[str], seed: int) -> list[int]:
    """The order in which published trainings drew rows: by a seeded hash of the words, rows of equal words by index."""

    def rank(index: int) -> tuple[str, int]:
        words = " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", texts[index]).casefold()))
        digest = hashlib.sha256((words or texts[index].strip()).encode()).hexdigest()[:16]
        return hashlib.sha256(f"{seed}/{digest}".encode()).hexdigest(), index

    return sorted(range(len(texts)), key=rank)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_the_order_is_that_of_published_trainings(seed: int) -> None:
    rng = random.Random(seed)
    texts = [f"{rng.randrange(9)} {rng.choice('+-*/<>')} {rng.randrange(9)}?" for _ in range(200)]
    assert drawn(texts, ["something else", "another"]).usable(seed) == (published(texts, seed), 0)


def test_the_order_does_not_follow_the_field_of_the_question() -> None:
    # By their words, nearly all documents share a question, so that the whole prompt gave the order.
    texts = [f"2 {symbol} 3" for symbol in "+-*/<>"]
    rows = drawn(texts, [f"4 {symbol} 5" for symbol in "+-*/<>"])
    prompts = [f"Question: {text}" for text in texts]
    assert rows.usable(3)[0] == published(prompts, 3)
    assert rows.question({"question": "2 + 3"}) == "2 + 3"


def test_only_rows_with_the_same_question_are_dropped() -> None:
    texts = ["Is 2 + 3 more?", "Is 2 - 3 more?", "Is x > 3?", "is 2 - 3 MORE", "Is -4 odd?"]
    rows = drawn(texts, ["Is 2 - 3 more?", "Is x < 3?", "Is 4 odd?"])
    order, dropped = rows.usable(0)
    assert sorted(order) == [0, 2, 4] and dropped == 2


@pytest.mark.parametrize("count", range(1, 12))
def test_rows_with_one_question_stay_together(count: int) -> None:
    # In the order of their words the first two questions alternate, and the last but one lie apart.
    texts = ["2 + 3", "2 - 3", "2 + 3", "2 - 3", "2+3?", "a", "b", "c", "A", "???", "\uff1f\uff1f\uff1f", "d"]
    rows = drawn(texts, ["something else", "another"])
    order, _ = rows.usable(5)
    development, training = rows.carve(order, count)
    assert development == order[: len(development)] and len(development) >= count
    assert not {text_hash(texts[index]) for index in development} & {text_hash(texts[index]) for index in training}
