"""Sweeps as work for workers: what they were asked, and their cells on the model.

Knows `sweep.layers` and `sweep.strengths`. Knows nothing of workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.layers import Layers
from aft_harness.boosters.variant import BASELINE, Variant
from aft_harness.digests import digest
from aft_harness.engine.part import Part
from aft_harness.harness import parts
from aft_harness.harness.examples import TaskExamples, examples_of
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.score_store import AnswerStore
from aft_harness.harness.selection import PromptFormat, TaskSelection
from aft_harness.harness.tasks import Tasks
from aft_harness.slices import Slice
from aft_harness.studies import sweep
from aft_harness.studies.cells import Description, Evaluated, Finished, Training
from aft_harness.studies.transfer_cells import extent
from aft_harness.training.identity import training_identity
from aft_harness.training.recipe import Settings
from aft_harness.training.train import train_into


@dataclass(frozen=True)
class SweepWork:
    """A sweep over layers, or over the strengths of a booster.

    Attributes:
        model: Arguments of `SteeredHFLM`; paths are those that workers see.
        selections: Training and development documents.
        test: Names of the tasks to report on.
        prompt_format: How prompts are formatted.
        limit: Test documents per task.
        docs: Or which.
        include_path: Folders with further task YAMLs.
        settings: How to train, and the seed of the split.
        layers: The layers to try; None where strengths are swept.
        variant: The booster to sweep; None where layers are.
        strengths: Its strengths.
    """

    model: Mapping[str, Any]
    selections: tuple[TaskSelection, ...]
    test: tuple[str, ...]
    prompt_format: PromptFormat
    limit: int | None = None
    docs: Slice | None = None
    include_path: tuple[str, ...] = ()
    settings: Settings = field(default_factory=Settings)
    layers: Layers | None = None
    variant: Variant | None = None
    strengths: tuple[float, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """What messages call the model."""
        return (str(self.model["pretrained"]),)

    def open(self, model: int, folder: Path) -> SweepCells:
        """Loads the model and draws the documents."""
        return SweepCells(SteeredHFLM(**self.model), self, folder)


class SweepCells:
    """The cells of a sweep; see `cells.Opened`."""

    def __init__(self, lm: SteeredHFLM, work: SweepWork, folder: Path) -> None:
        """Draws the documents; nothing is trained or evaluated yet.

        Raises:
            TaskError: A task that cannot be loaded or learned from, or test documents that are learned from.
        """
        self._lm, self._work, self._folder = lm, work, folder
        source = Tasks(work.include_path)
        self._drawn: list[TaskExamples] = [
            examples_of(*each, lm, work.prompt_format, work.settings.split_seed)
            for each in source.select(work.selections)
        ]
        self._test = sweep.Test(work.test, work.prompt_format, work.limit, work.docs, source)
        self._candidates = work.layers.resolve(len(lm.engine.layers)) if work.layers else ()
        if work.layers:
            learned = [example for task in self._drawn for example in (*task.development, *task.train)]
            sweep.refuse_overlap(self._test, learned)

    def describe(self) -> Description:
        """The cells: a training for each layer, and one evaluation of everything."""
        trainings = tuple(
            Training(f"train layer {layer}", sweep.layer_file(layer), self._identity(layer))
            for layer in self._candidates
        )
        assert self._test.source is not None
        evaluated = extent(self._test.source, self._test.tasks, self._test.docs, self._test.limit)
        label = f"evaluate {', '.join(self._test.tasks)}"
        return Description(
            tuple(map(str, self._drawn)),
            trainings,
            (Evaluated(label, tuple(range(len(trainings))), *evaluated),),
        )

    def train(self, training: int) -> None:
        """Makes the booster of a layer."""
        layer = self._candidates[training]
        settings = replace(self._work.settings, layers=layer)
        train_into(self._folder / sweep.layer_file(layer), self._lm, self._drawn, settings)

    def result(self, evaluation: int, boosters: Sequence[Booster]) -> str:
        """A name by which answers are found again; a sweep has no file of results in its work."""
        depends = {
            "variants": [self._lm.cache_identity(variant) for variant in self._variants(boosters)],
            "test": [self._work.test, self._work.limit, str(self._work.docs), self._work.prompt_format],
        }
        return f"sweep-{digest(depends)[:16]}"

    def answer(self, evaluation: int, boosters: Sequence[Booster], store: AnswerStore, part: Part) -> None:
        """Answers a part of what is evaluated on test documents."""
        test = self._test
        parts.answer(
            self._lm,
            [BASELINE, *self._variants(boosters)],
            test.tasks,
            test.prompt_format,
            part=part,
            store=store,
            source=test.source,
            limit=test.limit,
            docs=test.docs,
        )

    def finish(self, evaluation: int, boosters: Sequence[Booster], store: AnswerStore) -> Finished:
        """Chooses on development documents and reports: a `sweep.Sweep`."""
        work, test = self._work, self._test
        if work.variant is not None:
            return Finished({}, sweep.strengths(self._lm, work.variant, work.strengths, self._drawn, test, store))
        made = [int(layer) for booster in boosters for layer in booster.layers]  # all of them, unless one failed
        return Finished({}, sweep.layers(self._lm, self._drawn, work.settings, made, self._folder, test, store))

    def _variants(self, boosters: Sequence[Booster]) -> list[Variant]:
        if self._work.variant is not None:
            return sweep.at_strengths(self._work.variant, self._work.strengths)
        return [Variant(f"layer {booster.layers[0]}", booster) for booster in boosters]

    def _identity(self, layer: int) -> str:
        return training_identity(self._lm, self._drawn, replace(self._work.settings, layers=layer))
