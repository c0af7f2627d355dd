"""Transfer: does a booster that learned on one task help on another? A study that may be killed and resumed.

Each cell (one training, or one task under all boosters) is found by the content of everything it depends on: what is
finished is never done again, and nothing is taken for something else because of its name. A cell needs nothing but its
own inputs and writes one file atomically, so that cells may run in any order and anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

import aft_harness
from aft_harness.boosters.booster import Booster
from aft_harness.boosters.variant import BASELINE, Variant
from aft_harness.digests import digest
from aft_harness.engine.llama_library import checked_file
from aft_harness.errors import TaskError
from aft_harness.files import make_folder, write_atomically
from aft_harness.harness import evaluation
from aft_harness.harness.examples import Judging, TaskExamples, draw
from aft_harness.harness.gguf import SteeredGgufLM
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.score_store import AnswerStore, ScoreStore
from aft_harness.harness.shared_pass import SteeredLM
from aft_harness.harness.tasks import Tasks, evaluated_documents
from aft_harness.progress import OnProgress, OnTraining, ignore
from aft_harness.results import leaderboard
from aft_harness.results.runs import Run, rows
from aft_harness.slices import ALL
from aft_harness.studies.plan import Evaluation, Plan
from aft_harness.training import train as training
from aft_harness.training.identity import trained_before, training_identity
from aft_harness.training.recipe import Settings
from aft_harness.versions import versions


@dataclass(frozen=True)
class TrainingCell:
    """One booster to make.

    Attributes:
        name: Of what it learns from.
        tasks: The examples.
        settings: How.
        identity: Of everything that it depends on.
    """

    name: str
    tasks: tuple[TaskExamples, ...]
    settings: Settings
    identity: str

    def __str__(self) -> str:
        """What messages call it."""
        return f"train {self.name}, layers {self.settings.layers}, seed {self.settings.seed}"

    def path(self, folder: Path) -> Path:
        """The file that it makes."""
        return folder / "boosters" / f"{self.name}-s{self.settings.seed}-{self.identity[:16]}.safetensors"

    def made(self, folder: Path) -> Booster | None:
        """The booster, where it is made already."""
        return trained_before(self.path(folder), self.identity)


@dataclass(frozen=True)
class Reports:
    """Whom a study reports to.

    Attributes:
        cell: Called with each cell before it starts: its number from 1, how many there are of its kind, its name. On
            workers it is called after a cell: how many are done, of how many that are known, the name of the last.
        training: Called after each optimiser step.
        evaluation: Called with how many requests are scored, and of how many.
        examples: Called once with the examples of each training task.
        note: Called with what users should know of work that is done elsewhere: what was lost, warnings of workers.
    """

    cell: Callable[[int, int, str], None] = ignore
    training: OnTraining = ignore
    evaluation: OnProgress = ignore
    examples: Callable[[TaskExamples], None] = ignore
    note: Callable[[str], None] = ignore


class Study:
    """A plan on one model: its cells, and the tasks that they share, each loaded once.

    Attributes:
        lm: The model.
        plan: What is asked.
        folder: Where work is kept.
        tasks: lm-eval's tasks.
        trainings: The boosters to make.
        files: Arguments of `SteeredGgufLM` for each file on which they are evaluated, too.
    """

    def __init__(self, lm: SteeredHFLM, plan: Plan, folder: Path, files: Sequence[Mapping[str, Any]] = ()) -> None:
        """Draws the training documents; those that any of the plan's evaluations asks are not learned from.

        Raises:
            TaskError: A task that cannot be loaded or learned from, or boosters that a file cannot be steered with.
        """
        self.lm, self.plan, self.folder, self.files = lm, plan, folder, files
        self.tasks = Tasks(plan.include_path)
        self.trainings = list(self._trainings())
        self._loaded: tuple[Mapping[str, Any], SteeredGgufLM] | None = None
        for cell in self.trainings if files else ():
            _refuse_what_files_cannot(cell, len(lm.engine.layers))

    def _trainings(self) -> list[TrainingCell]:
        asked = frozenset(
            digest
            for evaluated in self.plan.evaluations
            for task in self.tasks.leaves([evaluated.task]).values()
            for _, hashes in evaluated_documents(task, evaluated.slice or ALL, evaluated.limit)
            for digest in hashes
        )
        found = []
        for name, selections in self.plan.sources.items():
            drawn = draw(
                selections,
                self.lm,
                self.plan.prompt_format,
                source=self.tasks,
                split_seed=self.plan.settings.split_seed,
                judging=Judging(self.plan.settings.reward) if self.plan.settings.on_own_texts else None,
            )
            tasks = tuple(_apart(task, asked) for task in drawn)
            # What a study says of choices is not for boosters that learn from none.
            choices = any(task.kind in ("choice", "judged") for task in tasks)
            common = self.plan.settings if choices else replace(self.plan.settings, objective=None)
            for layers in self.plan.layers:
                for seed in self.plan.seeds:
                    settings = replace(common, seed=seed)
                    settings = settings if layers is None else replace(settings, layers=layers)
                    found.append(TrainingCell(name, tasks, settings, training_identity(self.lm, tasks, settings)))
        return found

    def train(self, cell: TrainingCell, on_progress: OnTraining = ignore) -> Booster:
        """Makes a booster, or loads it where it is made already."""
        booster = cell.made(self.folder)
        if booster is None:
            make_folder(cell.path(self.folder).parent)
            booster = training.train_into(cell.path(self.folder), self.lm, cell.tasks, cell.settings, on_progress)
        return booster

    def evaluate(
        self,
        asked: Evaluation,
        boosters: Sequence[Booster],
        store: AnswerStore,
        on_progress: OnProgress = ignore,
        lm: SteeredLM | None = None,
    ) -> list[dict[str, Any]]:
        """Evaluates all boosters on one task in one pass, or reads what came out where it is done already.

        Args:
            asked: The task and its documents.
            boosters: What is compared with the baseline.
            store: Where scores are kept.
            on_progress: Called with how many requests are scored, and of how many.
            lm: The model that is evaluated, if it is another one than the boosters were trained on.

        Returns:
            The rows of a leaderboard.
        """
        lm = lm or self.lm
        path = self.result(asked, boosters, lm)
        if path.is_file():
            return list(json.loads(path.read_text(encoding="utf-8")))
        variants = variants_of(boosters)
        found = evaluation.evaluate(
            lm,
            variants,
            [asked.task],
            self.plan.prompt_format,
            source=self.tasks,
            limit=asked.limit,
            docs=asked.slice,
            store=store,
            on_progress=on_progress,
        )
        # Without names of their own, so that boosters are called by what they learned.
        made = rows([Run(each.results, each.results["samples"], each.variant.name) for each in found])
        make_folder(path.parent)
        write_atomically(path, json.dumps(made, default=str).encode())
        return made

    @property
    def evaluations(self) -> list[tuple[Mapping[str, Any] | None, Evaluation]]:
        """What is evaluated, in order: the model itself (None), then each file."""
        return [(file, asked) for file in (None, *self.files) for asked in self.plan.evaluations]

    def evaluated(self, file: Mapping[str, Any] | None) -> SteeredLM:
        """The model itself, or one of the files, which stays loaded until another is asked for."""
        if file is None:
            return self.lm
        if self._loaded is None or self._loaded[0] != file:
            self.close()
            self._loaded = file, SteeredGgufLM(**file)
        return self._loaded[1]

    def close(self) -> None:
        """Unloads the file."""
        if self._loaded is not None:
            self._loaded[1].model.close()
            self._loaded = None

    def result(self, asked: Evaluation, boosters: Sequence[Booster], lm: SteeredLM | None = None) -> Path:
        """The file that an evaluation makes; `lm` is as in `evaluate`."""
        return self.folder / "results" / f"{asked.task}-{self._identity(asked, boosters, lm or self.lm)[:16]}.json"

    def _identity(self, asked: Evaluation, boosters: Sequence[Booster], lm: SteeredLM) -> str:
        """SHA-256 of everything that an evaluation depends on."""
        tasks = self.tasks.leaves([asked.task]).values()
        depends = {
            "model": lm.cache_identity(BASELINE),
            "boosters": [(booster.sha256, booster.provenance.seed) for booster in boosters],
            "evaluation": asdict(asked),
            "prompting": {**asdict(self.plan.prompt_format), "include_path": None},
            "config": [task.config.to_dict(keep_callable=True) for task in tasks],
            "documents": [
                doc for task in tasks for doc, _ in evaluated_documents(task, asked.slice or ALL, asked.limit)
            ],
            "versions": {**versions(), "aft-harness": aft_harness.__version__},
        }
        return digest(depends)


def variants_of(boosters: Sequence[Booster]) -> list[Variant]:
    """What an evaluation compares."""
    return [BASELINE, *(Variant(f"booster{place}", booster) for place, booster in enumerate(boosters))]


def run(plan: Plan, folder: Path, table: Path, reports: Reports | None = None) -> pd.DataFrame:
    """Runs a study to its end, from what its folder holds.

    Args:
        plan: What is asked.
        folder: Where boosters, scores and results are kept; made if it does not exist.
        table: The leaderboard's CSV file, which rows are added to.
        reports: Whom to report to.

    Returns:
        The leaderboard.

    Raises:
        AftError: Whatever is wrong with the plan, a model, a task or a file.
    """
    reports = reports or Reports()
    make_folder(folder)
    for named in (file for files in plan.files for file in files):
        checked_file(named["pretrained"])
    for arguments, files in zip(plan.models, plan.files, strict=True):
        study = Study(SteeredHFLM(**arguments), plan, folder, files)
        for tasks in {cell.name: cell.tasks for cell in study.trainings}.values():
            for examples in tasks:
                reports.examples(examples)
        made = []
        for number, cell in enumerate(study.trainings, start=1):
            reports.cell(number, len(study.trainings), str(cell))
            made.append((cell, study.train(cell, reports.training)))
        with ScoreStore(folder / "answers.sqlite") as store:
            for number, (file, asked) in enumerate(study.evaluations, start=1):
                reports.cell(number, len(study.evaluations), evaluation_name(asked, file))
                boosters = [booster for cell, booster in made if asked.takes(cell.settings.seed)]
                lm = study.evaluated(file)
                leaderboard.add(table, study.evaluate(asked, boosters, store, reports.evaluation, lm))
        study.close()
    return leaderboard.load(table)


def evaluation_name(asked: Evaluation, file: Mapping[str, Any] | None) -> str:
    """What messages call an evaluation."""
    return f"evaluate {asked.task}" + (f" on {Path(file['pretrained']).name}" if file else "")


def _refuse_what_files_cannot(cell: TrainingCell, layers: int) -> None:
    """Refuses boosters that llama.cpp cannot add, before anything is trained.

    Raises:
        TaskError: A booster of layer 0, or a contextual one.
    """
    if 0 in cell.settings.layer_indices(layers):
        raise TaskError(f"{cell}: GGUF files cannot be steered at layer 0; leave it out with layers: [1-]")
    if cell.settings.kind != "static":
        raise TaskError(f"{cell}: GGUF files can be steered with vectors only; use recipe: {{kind: static}}")


def _apart(task: TaskExamples, asked: frozenset[str]) -> TaskExamples:
    kept = [example for example in task.train if example.document not in asked]
    if not kept:
        raise TaskError(f"task {task.task}: every training document is also evaluated; choose others with train_docs")
    development = [example for example in task.development if example.document not in asked]
    dropped = len(task.train) + len(task.development) - len(kept) - len(development)
    return replace(task, train=kept, development=development, overlapping=task.overlapping + dropped)
