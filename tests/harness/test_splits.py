from __future__ import annotations

import hashlib
import random
import re
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from harness_cases import TOYS, drawn

from aft_harness.boosters.documents import text_hash
from aft_harness.errors import TaskError
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.selection import PromptFormat, TaskSelection
from aft_harness.harness.splits import SeededRows, TrainingRows
from aft_harness.harness.tasks import Tasks


@pytest.fixture(scope="module")
def lm(tiny_model: Any, tiny_tokenizer: Any) -> SteeredHFLM:
    return SteeredHFLM(pretrained=tiny_model("llama", max_position_embeddings=2048), tokenizer=tiny_tokenizer)


def test_documents_that_the_evaluation_holds_are_dropped_and_counted(lm: SteeredHFLM) -> None:
    examples = drawn("toy_choice", lm)
    tests = {text_hash(doc["question"]) for doc in Tasks([TOYS]).leaves(["toy_choice"])["toy_choice"].test_docs()}
    assert examples.overlapping == 1 and len(examples.train) == 23
    assert tests.isdisjoint(example.document for example in examples.train)


def test_rows_of_the_evaluated_split_are_said_to_be(lm: SteeredHFLM, caplog: pytest.LogCaptureFixture) -> None:
    drawn("toy_choice", lm)
    assert not caplog.text
    drawn("toy_choice", lm, train_docs="test[0:5]")
    assert "task toy_choice: the rows test[0:5] are from the evaluated split" in caplog.text


def test_development_documents_are_carved_from_the_training_split(lm: SteeredHFLM) -> None:
    examples = drawn("toy_choice", lm, dev_docs=7, limit=10)
    assert (len(examples.train), len(examples.development)) == (10, 7)
    assert not {e.document for e in examples.train} & {e.document for e in examples.development}
    again = drawn("toy_choice", lm, dev_docs=7, limit=10)
    assert [e.document for e in again.train] == [e.document for e in examples.train]
    seeded = drawn("toy_choice", lm, dev_docs=7, limit=10, split_seed=1)
    assert {e.document for e in seeded.development} != {e.document for e in examples.development}
    # A smaller limit is a part of a larger one: curves over the number of examples are nested.
    fewer = drawn("toy_choice", lm, dev_docs=7, limit=4)
    assert {e.document for e in fewer.train} <= {e.document for e in examples.train}


def test_a_task_without_a_training_split_needs_a_slice(lm: SteeredHFLM) -> None:
    with pytest.raises(TaskError, match=r"toy_no_train has no training split; .*such as SPLIT\[A:B\].*splits: train"):
        drawn("toy_no_train", lm)
    examples = drawn("toy_no_train", lm, train_docs="test[0:5]")
    assert len(examples.train) == 5 and examples.split == "test[0:5]" and examples.overlapping == 0


def test_a_task_that_evaluates_its_training_split_is_refused_with_the_way_out(lm: SteeredHFLM) -> None:
    with pytest.raises(
        TaskError, match=r"none of the 12 documents .*choose held-out rows to train on, such as SPLIT\[A:B\]"
    ):
        drawn("toy_train_is_test", lm)


def rows(name: str, **selection: Any) -> TrainingRows:
    return TrainingRows(Tasks([TOYS]).leaves([name])[name], TaskSelection(name, **selection))


def test_rows_are_named_as_they_would_be_selected() -> None:
    for text, named in ((None, "train[0:24]"), ("train[5:]", "train[5:24]"), ("validation[:99]", "validation[0:4]")):
        found = rows("toy_choice", train_docs=text)
        assert str(found) == named == str(rows("toy_choice", train_docs=named))
        assert list(found.docs) == list(range(found.rows.start, found.rows.stop or 0))


def test_rows_that_were_set_aside_are_no_longer_evaluated() -> None:
    aside = rows("toy_choice", train_docs="test[2:6]")
    assert sorted(aside.usable(0)[0]) == [2, 3, 4, 5]
    # Of another split than the evaluated one, every question that is evaluated counts.
    assert rows("toy_choice", train_docs="train[2:6]").usable(0)[1] == 1


def test_questions_are_hashed_and_one_that_is_evaluated_is_dropped() -> None:
    found = rows("toy_choice")
    order, overlapping = found.usable(7)
    assert overlapping == 1 and 3 not in order and len(order) == 23
    assert found.hashes[5] == text_hash(found.docs[5]["question"]) == text_hash(found.question(found.docs[5]))


def test_rows_with_one_question_stay_on_one_side() -> None:
    found = SeededRows({index: str(index // 3) for index in range(9)}, str)
    order = list(range(9))
    for wanted, carved in ((0, 0), (1, 3), (3, 3), (4, 6), (8, 9), (99, 9)):
        development, training = found.carve(order, wanted)
        assert (development, training) == (order[:carved], order[carved:])


def test_without_a_question_field_the_prompt_tells_documents_apart() -> None:
    assert rows("toy_choice").question({"question": "Who?", "sentence": "a _ b"}) == "Who?"
    task = Tasks([TOYS]).leaves(["toy_choice"])["toy_choice"]
    task.dataset["test"] = task.dataset["test"].map(lambda doc: {"question": "Who?", "sentence": "same"})
    assert TrainingRows(task, TaskSelection("toy_choice")).question({"question": "Who?"}) == "Who? Answer:"


@pytest.mark.parametrize(
    ("task", "field", "evaluated"),
    [("arc_easy", "question", "test"), ("hellaswag", "ctx", "validation"), ("gsm8k", "question", "test")],
)
def test_real_tasks_drop_the_rows_that_are_evaluated(
    real_data: Path, lm: SteeredHFLM, task: str, field: str, evaluated: str
) -> None:
    source = Tasks()
    loaded = source.leaves([task])[task]
    tests = set(loaded.dataset[evaluated][field])
    rows_in_both = sum(text in tests for text in loaded.dataset["train"][field])
    examples = drawn(task, lm, PromptFormat(num_fewshot=0), source=source, limit=20)
    assert len(examples.train) == 20 and examples.overlapping == rows_in_both
    assert {"arc_easy": True, "hellaswag": True, "gsm8k": False}[task] == (rows_in_both > 0)


def made_task(train: list[str], test: list[str]) -> Any:
    """What `TrainingRows` needs of a task object."""
    split = {name: [{"question": text} for text in texts] for name, texts in (("train", train), ("test", test))}
    return SimpleNamespace(
        config=SimpleNamespace(training_split="train", validation_split=None, test_split="test", process_docs=None),
        dataset=split,
        eval_docs=split["test"],
        has_training_docs=lambda: True,
        doc_to_text=lambda doc: f"Question: {doc['question']}",
    )


def rows_of(train: list[str], test: list[str]) -> TrainingRows:
    return TrainingRows(made_task(train, test), TaskSelection("toy"))


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
    assert rows_of(texts, ["something else", "another"]).usable(seed) == (published(texts, seed), 0)


def test_the_order_does_not_follow_the_field_of_the_question() -> None:
    # By their words, nearly all documents share a question, so that the whole prompt gave the order.
    texts = [f"2 {symbol} 3" for symbol in "+-*/<>"]
    rows = rows_of(texts, [f"4 {symbol} 5" for symbol in "+-*/<>"])
    prompts = [f"Question: {text}" for text in texts]
    assert rows.usable(3)[0] == published(prompts, 3)
    assert rows.question({"question": "2 + 3"}) == "2 + 3"


def test_only_rows_with_the_same_question_are_dropped() -> None:
    texts = ["Is 2 + 3 more?", "Is 2 - 3 more?", "Is x > 3?", "is 2 - 3 MORE", "Is -4 odd?"]
    rows = rows_of(texts, ["Is 2 - 3 more?", "Is x < 3?", "Is 4 odd?"])
    order, dropped = rows.usable(0)
    assert sorted(order) == [0, 2, 4] and dropped == 2


@pytest.mark.parametrize("count", range(1, 12))
def test_rows_with_one_question_are_never_on_both_sides(count: int) -> None:
    # In the order of their words the first two questions alternate, and the last but one lie apart.
    texts = ["2 + 3", "2 - 3", "2 + 3", "2 - 3", "2+3?", "a", "b", "c", "A", "???", "\uff1f\uff1f\uff1f", "d"]
    rows = rows_of(texts, ["something else", "another"])
    order, _ = rows.usable(5)
    development, training = rows.carve(order, count)
    assert development == order[: len(development)] and len(development) >= count
    assert not {text_hash(texts[index]) for index in development} & {text_hash(texts[index]) for index in training}
