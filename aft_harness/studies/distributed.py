"""A study whose cells run on workers: which cells there are, what follows from each, and where results are kept.

Knows the work folder, which nobody else writes to, and cells by name. Loads no model. Everything in the folder is found
by content, as in `transfer.py`: another run, with any number of workers, goes on from what is there.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aft_harness.engine.part import Part
from aft_harness.errors import CacheError, StudyError
from aft_harness.studies.cells import Description, Evaluated, Files, Finished, Training, Work
from aft_harness.studies.dispatch import Cell, Dispatcher, FailedCell, Pool
from aft_harness.studies.storage import Storage
from aft_harness.studies.transfer import Reports
from aft_harness.studies.workers import Workers, shares

OnResult = Callable[[Finished], None]
"""Called with what each evaluation came to, as soon as it is kept."""

MARKER = "study.json"
"""A file in the work folder, by which a report knows it for that of a study."""


@dataclass
class _Model:
    """What is known of the study on one model."""

    number: int
    described: Description
    made: dict[int, Any] = field(default_factory=dict)
    missing: set[int] = field(default_factory=set)
    begun: set[int] = field(default_factory=set)


@dataclass
class _Pending:
    """An evaluation under way."""

    of: _Model
    number: int
    asked: Evaluated
    boosters: list[Any]
    name: str = ""
    known: list[Any] = field(default_factory=list)
    open: int = 0


class DistributedStudy:
    """Cells of some work, and what is kept of them."""

    def __init__(
        self, work: Work, storage: Storage, pool: Pool, workers: Workers, on_result: OnResult, reports: Reports
    ) -> None:
        """Starts nothing yet.

        Args:
            work: What is asked.
            storage: The work folder.
            pool: The workers.
            workers: How evaluations are cut.
            on_result: Called with each result, one at a time.
            reports: Whom to report to.
        """
        self._work, self._storage, self._pool, self._workers = work, storage, pool, workers
        self._on_result, self._reports = on_result, reports

    def run(self) -> list[FailedCell]:
        """Runs what is not done yet.

        Returns:
            The cells that failed for good; what needs none of them is done.

        Raises:
            StudyError: No worker is left, or one is not fit.
            FileError: The work folder cannot be written.
        """
        self._storage.write(MARKER, json.dumps({"models": len(self._work.models)}).encode())
        cells = [self._description(number) for number in range(len(self._work.models))]
        return Dispatcher(self._pool, cells, self._reports.note, self._reports.cell).run()

    @staticmethod
    def fits(data: bytes, training: Training) -> bool:
        """Whether a booster's file came from the very training."""
        from aft_harness.training.identity import trained_before

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "booster.safetensors"
            path.write_bytes(data)
            return trained_before(path, training.identity) is not None

    def _description(self, number: int) -> Cell:
        def done(described: Description) -> Iterator[Cell]:
            for text in described.notes:
                self._reports.note(text)
            model = _Model(number, described)
            for place, training in enumerate(described.trainings):
                files = self._made(training)
                if files is not None:
                    model.made[place] = self._pool.share(files)
                else:
                    yield self._training(model, place, training)
            yield from self._evaluations(model)

        return Cell(f"load {Path(self._work.models[number]).name}", number, "describe", (), done)

    def _made(self, training: Training) -> Files | None:
        """The booster's files, where it is made already."""
        data = self._storage.read(training.file)
        if data is None:
            return None
        from aft_harness.boosters.file_format import sidecar

        beside = str(sidecar(Path(training.file)))
        documents = self._storage.read(beside)
        files = {**({} if documents is None else {beside: documents}), training.file: data}
        return files if self.fits(data, training) else None

    def _training(self, model: _Model, place: int, training: Training) -> Cell:
        def done(files: Files) -> Iterator[Cell]:
            if list(files)[-1:] != [training.file] or not self.fits(files[training.file], training):
                raise StudyError("the worker made another booster than was asked for; its model or data differ")
            for name, data in files.items():
                self._storage.write(name, data)
            model.made[place] = self._pool.share(files)
            yield from self._evaluations(model)

        def failed() -> Iterator[Cell]:
            model.missing.add(place)
            yield from self._evaluations(model)

        return Cell(training.label, model.number, "train", (place,), done, failed)

    def _evaluations(self, model: _Model) -> Iterator[Cell]:
        """Those whose boosters are all there, but for boosters that cannot be made."""
        for number, asked in enumerate(model.described.evaluations):
            if number in model.begun or not {*model.made, *model.missing}.issuperset(asked.trainings):
                continue
            model.begun.add(number)
            boosters = [model.made[place] for place in asked.trainings if place in model.made]
            if boosters or not asked.trainings:
                yield self._located(_Pending(model, number, asked, boosters))

    def _located(self, pending: _Pending) -> Cell:
        def done(name: str) -> Iterator[Cell]:
            pending.name = name
            data = self._storage.read(name)
            if data is not None and _is_json(data):
                self._on_result(Finished({name: data}))
                return
            for file in self._storage.names(_answers(name)):
                data = self._storage.read(file)
                if data is not None and _is_answers(data):
                    pending.known.append(self._pool.share(data))
            count = shares(
                pending.asked.documents, pending.asked.written, len(self._pool.workers), self._workers.documents
            )
            if count == 1:
                yield self._completed(pending)
                return
            pending.open = count
            for index in range(count):
                yield self._share(pending, Part(index, count))

        return Cell(
            f"look for {pending.asked.label}", pending.of.number, "result", (pending.number, pending.boosters), done
        )

    def _share(self, pending: _Pending, part: Part) -> Cell:
        known = list(pending.known)

        def ended() -> Iterator[Cell]:
            pending.open -= 1
            if not pending.open:
                yield self._completed(pending)

        def done(data: bytes) -> Iterator[Cell]:
            name = hashlib.sha256(data).hexdigest()[:16]
            self._storage.write(f"{_answers(pending.name)}/{name}.answers", data)
            pending.known.append(self._pool.share(data))
            yield from ended()

        label = f"{pending.asked.label}, share {part.index + 1} of {part.count}"
        arguments = (pending.number, pending.boosters, known, part)
        # Without a share the rest goes on: whoever completes the evaluation scores what is not there, or fails, too.
        return Cell(label, pending.of.number, "answer", arguments, done, ended)

    def _completed(self, pending: _Pending) -> Cell:
        def done(finished: Finished) -> Iterator[Cell]:
            if finished.files and list(finished.files) != [pending.name]:
                raise StudyError("the worker evaluated something else than was asked for; its data differ")
            for name, data in finished.files.items():
                self._storage.write(name, data)
            self._on_result(finished)
            yield from ()

        label, arguments = pending.asked.label, (pending.number, pending.boosters, pending.known)
        return Cell(label, pending.of.number, "finish", arguments, done)


def _answers(name: str) -> str:
    """The folder of the answers that an evaluation is put together from."""
    return f"answers/{Path(name).stem}"


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def _is_answers(data: bytes) -> bool:
    from aft_harness.harness.answers import Answers

    try:
        Answers.of(data)
    except CacheError:
        return False
    return True
