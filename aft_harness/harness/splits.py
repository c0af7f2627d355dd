"""The rows of a split that training may draw from: in a seeded order, without what evaluation would meet again.

Knows lm-eval's task objects and their splits. Keeps the three roles of documents apart: training, development, test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from aft_harness.boosters import documents
from aft_harness.errors import TaskError
from aft_harness.harness.selection import TaskSelection
from aft_harness.slices import Slice, SplitSlice


class SeededRows:
    """Rows in an order that a seed and their questions decide, and never their place: it can be cut at any point."""

    def __init__(self, hashes: Mapping[int, str], key: Callable[[int], str]) -> None:
        """Remembers what rows are known by.

        Args:
            hashes: Of each row's question, by row: rows of one hash are the same document.
            key: What a row's place in the order is drawn by.
        """
        self._hashes, self._key = hashes, key

    def ordered(self, indices: Iterable[int], seed: int) -> list[int]:
        """Some rows in their seeded order; rows of one key follow by index."""

        def rank(index: int) -> tuple[str, int]:
            return hashlib.sha256(f"{seed}/{self._key(index)}".encode()).hexdigest(), index

        return sorted(indices, key=rank)

    def carve(self, order: Sequence[int], count: int) -> tuple[list[int], list[int]]:
        """Splits an order into its first rows and the others; rows with one question stay together."""
        cut = min(count, len(order))
        while 0 < cut < len(order) and self._together(order[cut - 1], order[cut]):
            cut += 1
        # Rows with one question nearly always follow each other; where they do not, they are not learned from.
        first = {self._hashes[index] for index in order[:cut]}
        return list(order[:cut]), [index for index in order[cut:] if self._hashes[index] not in first]

    def _together(self, index: int, following: int) -> bool:
        """Whether no cut is made between two rows: of one question, or of one place in the order, as published."""
        return self._hashes[index] == self._hashes[following] or self._key(index) == self._key(following)


class TrainingRows:
    """The rows of one split that a selection names, or of the task's training split."""

    def __init__(self, task: Any, selection: TaskSelection) -> None:
        """Reads the rows and the questions of what the task evaluates.

        Raises:
            TaskError: No training split, no such split, or no row.
        """
        name = selection.name
        self._task, self.name = task, name
        named = SplitSlice.parse(selection.train_docs) if selection.train_docs is not None else None
        if named is None and not task.has_training_docs():
            splits = ", ".join(map(str, getattr(task, "dataset", {}) or []))
            raise TaskError(
                f"task {name} has no training split; set aside rows of another split to train on, such as "
                f"SPLIT[A:B] (splits: {splits}), and evaluate on the rest"
            )
        rows = named or SplitSlice(str(task.config.training_split))
        self.split = rows.split
        docs = self.split_docs = _split_docs(task, rows.split, name)
        self.rows = Slice(rows.rows.start, len(docs) if rows.rows.stop is None else min(rows.rows.stop, len(docs)))
        self.docs: dict[int, Mapping[str, Any]] = {index: doc for index, doc in enumerate(docs) if index in self.rows}
        if not self.docs:
            raise TaskError(f"task {name}: {selection.train_docs} is empty; the split has {len(docs)} rows")
        self.of_evaluation = rows.split == (task.config.test_split or task.config.validation_split)
        """Whether the task evaluates the split that these rows are of."""
        evaluated = list(task.eval_docs)
        self._field = self._question_field(evaluated, documents.normalised)
        self._order_field = self._question_field(evaluated, documents.words)
        if named is not None and self.of_evaluation:
            # The caller set these rows aside; what is evaluated is the rest of the split.
            evaluated = [doc for index, doc in enumerate(evaluated) if index not in self.rows]
        self.hashes = {index: documents.text_hash(self.question(doc)) for index, doc in self.docs.items()}
        self._order_keys: dict[int, str] = {}
        self._seeded = SeededRows(self.hashes, self._order_key)
        self._evaluated = {documents.text_hash(self.question(doc)) for doc in evaluated}

    def __str__(self) -> str:
        """The rows, as they would be selected."""
        return f"{self.split}[{self.rows}]"

    def question(self, doc: Mapping[str, Any]) -> str:
        """The field that holds the question, else the document's own prompt without few-shot examples."""
        return self._text(doc, self._field)

    def usable(self, seed: int) -> tuple[list[int], int]:
        """Row indices in their seeded order, without what the evaluation would meet again, and how many those are."""
        free = [index for index, digest in self.hashes.items() if digest not in self._evaluated]
        return self._seeded.ordered(free, seed), len(self.hashes) - len(free)

    def carve(self, order: list[int], dev_docs: int) -> tuple[list[int], list[int]]:
        """Splits an order into development and training rows; rows with one question stay together."""
        return self._seeded.carve(order, dev_docs)

    def _order_key(self, index: int) -> str:
        """What a row's place in the order is drawn by: its question's words alone, without symbols.

        Not the hash of the question: which documents a limit takes, and in which order, follows from this key, so that
        trainings that are published could not be repeated with another. Rows of one key follow by index.
        """
        if index not in self._order_keys:
            self._order_keys[index] = documents.words_hash(self._text(self.docs[index], self._order_field))
        return self._order_keys[index]

    def _question_field(self, evaluated: Sequence[Mapping[str, Any]], reading: Callable[[str], str]) -> str | None:
        field = documents.question_field(evaluated, reading)
        return field if field and all(isinstance(doc.get(field), str) for doc in self.docs.values()) else None

    def _text(self, doc: Mapping[str, Any], field: str | None) -> str:
        if field:
            return str(doc[field])
        text = self._task.doc_to_text(doc)
        return text if isinstance(text, str) else "\n".join(map(str, self._task.doc_to_choice(doc)))


def _split_docs(task: Any, split: str, name: str) -> Any:
    if split not in task.dataset:
        raise TaskError(f"task {name} has no split {split!r}; it has {', '.join(map(str, task.dataset))}")
    rows = task.dataset[split]
    return task.config.process_docs(rows) if task.config.process_docs is not None else rows
