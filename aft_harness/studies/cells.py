"""What a study consists of where its cells run elsewhere: the words that its two ends exchange.

The near end knows which cells are done and writes files; the far end has a model. Between them go a plan, names,
boosters and answers: never weights, never code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from aft_harness.boosters.booster import Booster
from aft_harness.engine.part import Part
from aft_harness.harness.score_store import AnswerStore

Files = dict[str, bytes]
"""Files by their names in a work folder; the one that the others belong to is the last."""


@dataclass(frozen=True)
class Training:
    """A booster to make.

    Attributes:
        label: What messages call it.
        file: Its name in the work folder.
        identity: Of everything that it depends on; see `training.identity`.
    """

    label: str
    file: str
    identity: str


@dataclass(frozen=True)
class Evaluated:
    """Something to evaluate boosters on.

    Attributes:
        label: What messages call it.
        trainings: Which boosters, by the place of their training.
        documents: How many it evaluates.
        written: Whether texts are written.
    """

    label: str
    trainings: tuple[int, ...]
    documents: int
    written: bool


@dataclass(frozen=True)
class Description:
    """The cells of a study on one model.

    Attributes:
        notes: What users should know of the documents that are learned from.
        trainings: The boosters to make.
        evaluations: What they are evaluated on.
    """

    notes: tuple[str, ...]
    trainings: tuple[Training, ...]
    evaluations: tuple[Evaluated, ...]


@dataclass(frozen=True)
class Finished:
    """What an evaluation came to.

    Attributes:
        files: To be kept in the work folder.
        value: For whoever asked.
    """

    files: Files
    value: Any = None


class Opened(Protocol):
    """A study on a model that is loaded. Evaluations and trainings are named by their places in `describe`."""

    def describe(self) -> Description:
        """The cells."""

    def train(self, training: int) -> None:
        """Makes a booster, as a file of the work folder."""

    def result(self, evaluation: int, boosters: Sequence[Booster]) -> str:
        """The name of the file, or of what would be the file, that an evaluation of these boosters makes."""

    def answer(self, evaluation: int, boosters: Sequence[Booster], store: AnswerStore, part: Part) -> None:
        """Answers a part of what an evaluation asks."""

    def finish(self, evaluation: int, boosters: Sequence[Booster], store: AnswerStore) -> Finished:
        """Completes an evaluation with what is answered already."""


class Work(Protocol):
    """A study as it is sent to workers.

    Attributes:
        models: What messages call the models.
    """

    @property
    def models(self) -> tuple[str, ...]:
        """What messages call the models."""

    def open(self, model: int, folder: Path) -> Opened:
        """Loads a model and finds its cells.

        Args:
            model: By its place.
            folder: Where files are left, empty.
        """
