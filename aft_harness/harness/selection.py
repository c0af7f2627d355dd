"""Which documents of which tasks or pairs, and how prompts are formatted: what a user asks for, before anything loads.

Knows names and numbers only, so that plans and the command line can use it without torch or lm-eval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aft_harness.errors import ParseError

TRAINING_DOCUMENTS = 600
"""Of each task, where nothing is said: minutes on a laptop, whatever the size of the task's training split."""

HELD_OUT_PAIRS = 200
"""Of each set of pairs, at most, where nothing is said."""


@dataclass(frozen=True)
class PromptFormat:
    """How prompts are formatted, with the names of lm-eval's options.

    Attributes:
        num_fewshot: Number of few-shot examples; None means the task's own.
        apply_chat_template: Whether to apply the tokenizer's chat template.
        system_instruction: System message to put before every prompt.
        fewshot_as_multiturn: Whether to format few-shot examples as chat turns; None means if there is a chat template.
    """

    num_fewshot: int | None = None
    apply_chat_template: bool = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool | None = None

    @property
    def multiturn(self) -> bool:
        """Whether few-shot examples are chat turns."""
        return self.apply_chat_template if self.fewshot_as_multiturn is None else self.fewshot_as_multiturn


@dataclass(frozen=True)
class TaskSelection:
    """Which documents of one task to train on.

    Attributes:
        name: Task name.
        limit: Maximum number of training documents; None means all.
        weight: Weight of the task in the loss of a mixture.
        train_docs: Rows to draw from, as `split` or `split[a:b]`; None means the task's training split.
        dev_docs: Number of development documents to hold out from the same rows.
        development_only: Whether to draw development documents only.
        target_field: Document field that contains the target text, for tasks that generate text; None means the task's
            own target.

    Raises:
        ParseError: A number of documents that leaves none.
    """

    name: str
    limit: int | None = TRAINING_DOCUMENTS
    weight: float = 1.0
    train_docs: str | None = None
    dev_docs: int = 0
    development_only: bool = False
    target_field: str | None = None

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if self.limit is not None and self.limit < 1:
            raise ParseError(f"task {self.name}: a limit of {self.limit} leaves no training documents")
        if self.dev_docs < 0:
            raise ParseError(f"task {self.name}: {self.dev_docs} is not a valid number of development documents")


@dataclass(frozen=True)
class PairSelection:
    """Which pairs of one file or data set to train on.

    Attributes:
        source: A file, a data set of the hub, or the pairs themselves; see docs/pairs.md.
        limit: Maximum number of training pairs; None means all.
        weight: Weight of the pairs in the loss of a mixture.
        dev_docs: Number of development pairs to hold out for choosing the epoch, layer or strength.
        held_out: Number of pairs to hold out for the reported result; None means a fifth of them, at most
            `HELD_OUT_PAIRS`.

    Raises:
        ParseError: A number of pairs that leaves none.
    """

    source: str | Path | Sequence[Mapping[str, Any]]
    limit: int | None = TRAINING_DOCUMENTS
    weight: float = 1.0
    dev_docs: int = 0
    held_out: int | None = None

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if self.limit is not None and self.limit < 1:
            raise ParseError(f"a limit of {self.limit} leaves no training pairs")
        for count, role in ((self.dev_docs, "development"), (self.held_out or 0, "held-out")):
            if count < 0:
                raise ParseError(f"{count} is not a valid number of {role} pairs")


def task_names(tasks: str | Sequence[str]) -> list[str]:
    """The names of a list, or of text that separates them by commas, each once.

    Raises:
        ParseError: There is none.
    """
    listed = tasks.split(",") if isinstance(tasks, str) else tasks
    names = list(dict.fromkeys(name.strip() for name in listed if name.strip()))
    if not names:
        raise ParseError("no tasks given")
    return names
