"""A transfer study as work for workers: its plan, and its cells on a model.

Knows `transfer.Study`. Knows nothing of workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aft_harness.boosters.booster import Booster
from aft_harness.engine.part import Part
from aft_harness.files import absolute
from aft_harness.harness import parts
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.score_store import AnswerStore
from aft_harness.harness.tasks import Tasks, evaluated_documents
from aft_harness.slices import ALL, Slice
from aft_harness.studies.cells import Description, Evaluated, Finished, Training
from aft_harness.studies.plan import Plan
from aft_harness.studies.transfer import Study, variants_of


@dataclass(frozen=True)
class TransferWork:
    """A plan, with paths that do not depend on where it is read."""

    plan: Plan

    @classmethod
    def of(cls, plan: Plan) -> TransferWork:
        """The work of a plan."""
        models = [{**model, "pretrained": absolute(model["pretrained"])} for model in plan.models]
        included = tuple(map(absolute, plan.include_path))
        return cls(replace(plan, models=tuple(models), include_path=included))

    @property
    def models(self) -> tuple[str, ...]:
        """What messages call the models."""
        return tuple(str(model["pretrained"]) for model in self.plan.models)

    def open(self, model: int, folder: Path) -> TransferCells:
        """Loads a model and draws the documents."""
        return TransferCells(Study(SteeredHFLM(**self.plan.models[model]), self.plan, folder))


class TransferCells:
    """The cells of a transfer study on one model; see `cells.Opened`."""

    def __init__(self, study: Study) -> None:
        """Nothing is trained or evaluated yet."""
        self._study = study

    def describe(self) -> Description:
        """The cells."""
        study, plan = self._study, self._study.plan
        drawn = {cell.name: cell.tasks for cell in study.trainings}
        return Description(
            tuple(str(examples) for tasks in drawn.values() for examples in tasks),
            tuple(
                Training(str(cell), str(cell.path(study.folder).relative_to(study.folder)), cell.identity)
                for cell in study.trainings
            ),
            tuple(
                Evaluated(
                    f"evaluate {asked.task}",
                    tuple(place for place, cell in enumerate(study.trainings) if asked.takes(cell.settings.seed)),
                    *extent(study.tasks, [asked.task], asked.slice, asked.limit),
                )
                for asked in plan.evaluations
            ),
        )

    def train(self, training: int) -> None:
        """Makes a booster."""
        self._study.train(self._study.trainings[training])

    def result(self, evaluation: int, boosters: Sequence[Booster]) -> str:
        """The file of an evaluation."""
        path = self._study.result(self._study.plan.evaluations[evaluation], boosters)
        return str(path.relative_to(self._study.folder))

    def answer(self, evaluation: int, boosters: Sequence[Booster], store: AnswerStore, part: Part) -> None:
        """Answers a part of an evaluation."""
        study, asked = self._study, self._study.plan.evaluations[evaluation]
        parts.answer(
            study.lm,
            variants_of(boosters),
            [asked.task],
            study.plan.prompt_format,
            part=part,
            store=store,
            source=study.tasks,
            limit=asked.limit,
            docs=asked.slice,
        )

    def finish(self, evaluation: int, boosters: Sequence[Booster], store: AnswerStore) -> Finished:
        """Completes an evaluation: a file of rows of a leaderboard."""
        study, asked = self._study, self._study.plan.evaluations[evaluation]
        study.evaluate(asked, boosters, store)
        path = study.result(asked, boosters)
        return Finished({self.result(evaluation, boosters): path.read_bytes()})


def extent(source: Tasks, names: Sequence[str], docs: Slice | None, limit: int | None) -> tuple[int, bool]:
    """How many documents tasks evaluate, and whether texts are written for some."""
    tasks = source.leaves(names).values()
    documents = sum(1 for task in tasks for _ in evaluated_documents(task, docs or ALL, limit))
    return documents, any(task.OUTPUT_TYPE == "generate_until" for task in tasks)
