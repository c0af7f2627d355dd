"""The far end of a study: one model at a time, loaded once, and the cells that it is asked for.

Knows the work that it was sent, and a temporary folder of its own. Knows nothing of who asks and of who else works.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aft_harness.engine.part import Part
from aft_harness.errors import AftError
from aft_harness.studies.cells import Description, Files, Finished, Opened, Work
from aft_harness.text import reason
from aft_harness.versions import installed


@dataclass(frozen=True)
class Failure:
    """A cell that came to nothing.

    Attributes:
        message: Why, in one line.
        lost: Whether the worker is gone, too.
    """

    message: str
    lost: bool = False


@dataclass(frozen=True)
class Success:
    """A cell that came to its end.

    Attributes:
        value: What it gave.
        warnings: What was logged meanwhile.
    """

    value: Any
    warnings: tuple[str, ...] = ()


Outcome = Success | Failure


class Worker:
    """Runs cells, one at a time."""

    def __init__(self, work: Work) -> None:
        """Loads nothing yet.

        Args:
            work: What the cells are of.
        """
        self._work = work
        self._model: int | None = None
        self._opened: Opened | None = None
        self._described: Description | None = None
        self._folder: Path | None = None

    def hello(self) -> dict[str, Any]:
        """Who this is."""
        return {"host": platform.node(), "pid": os.getpid(), "installed": installed()}

    def run(self, method: str, model: int, *arguments: Any) -> Outcome:
        """Runs a cell, whatever becomes of it.

        Args:
            method: A method below.
            model: Of which model.
            *arguments: Of the method.
        """
        heard = _Heard()
        logger = logging.getLogger("aft_harness")
        logger.addHandler(heard)
        try:
            opened = self._open(model)
            value = getattr(self, method)(opened, *arguments)
        except AftError as error:
            return Failure(f"{error} (on {platform.node()})")
        except Exception as error:  # a defect, or what a library raised: this cell's, and no other's
            return Failure(f"{type(error).__name__}: {reason(error)} (on {platform.node()})")
        finally:
            logger.removeHandler(heard)
        return Success(value, tuple(heard.messages))

    def describe(self, opened: Opened) -> Description:
        """The cells of the model."""
        self._described = self._described or opened.describe()
        return self._described

    def train(self, opened: Opened, training: int) -> Files:
        """Makes a booster; the file of a list of its documents comes before that of the booster."""
        opened.train(training)
        return self._made(self.describe(opened).trainings[training].file)

    def result(self, opened: Opened, evaluation: int, boosters: Sequence[Files]) -> str:
        """The name of what an evaluation makes."""
        return opened.result(evaluation, self._boosters(boosters))

    def answer(
        self, opened: Opened, evaluation: int, boosters: Sequence[Files], known: Sequence[bytes], part: Part
    ) -> bytes:
        """Answers a part of an evaluation, beyond what is known."""
        from aft_harness.harness.answers import Answers

        store = Answers(map(Answers.of, known))
        opened.answer(evaluation, self._boosters(boosters), store, part)
        return store.new()

    def finish(self, opened: Opened, evaluation: int, boosters: Sequence[Files], known: Sequence[bytes]) -> Finished:
        """Completes an evaluation."""
        from aft_harness.harness.answers import Answers

        return opened.finish(evaluation, self._boosters(boosters), Answers(map(Answers.of, known)))

    def _open(self, model: int) -> Opened:
        if self._opened is None or self._model != model:
            self.close()  # one model at a time
            self._folder = Path(tempfile.mkdtemp(prefix="aft-worker-"))
            self._opened = self._work.open(model, self._folder)
            self._model = model
        return self._opened

    def close(self) -> None:
        """Drops the model and the folder."""
        self._opened = self._described = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _boosters(self, given: Sequence[Files]) -> list[Any]:
        from aft_harness.boosters import file_format

        assert self._folder is not None
        for files in given:
            for name, data in files.items():
                path = self._folder / name
                if not path.is_file() or path.read_bytes() != data:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(data)
        return [file_format.load(self._folder / list(files)[-1]) for files in given]

    def _made(self, file: str) -> Files:
        from aft_harness.boosters import file_format

        assert self._folder is not None
        path = self._folder / file
        beside = file_format.sidecar(path)
        return {str(each.relative_to(self._folder)): each.read_bytes() for each in (beside, path) if each.is_file()}


class _Heard(logging.Handler):
    """Keeps the warnings of this package."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
