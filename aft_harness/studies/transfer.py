"""Transfer: does a booster that learned on one task help on another? A study that may be killed and goes on.

Each cell (one training, or one task under all boosters) is found by the content of everything it depends on: what is
finished is never done again, and nothing is taken for something else because of its name. A cell needs nothing but its
own inputs and writes one file atomically, so that cells may run in any order and anywhere.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import aft_harness
from aft_harness.boosters.booster import Booster, write_atomically
from aft_harness.engine import packing
from aft_harness.errors import TaskError
from aft_harness.harness import evaluation
from aft_harness.harness.evaluation import Variant
from aft_harness.harness.examples import Example, TaskExamples, TaskSelection, evaluated, load_tasks, task_examples
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.score_store import ScoreStore
from aft_harness.results import leaderboard
from aft_harness.results.pairing import bounds
from aft_harness.studies.plan import Evaluation, Plan
from aft_harness.training import train as training
from aft_harness.training.answers import OnProgress
from aft_harness.training.recipe import Settings
from aft_harness.training.train import Progress

TRIAL_STEPS = 8
"""Tokens that a trial of writing writes."""


@dataclass(frozen=True)
class Training:
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

    def path(self, folder: Path) -> Path:
        """The file that it makes."""
        return folder / "boosters" / f"{self.name}-s{self.settings.seed}-{self.identity[:16]}.safetensors"

    def made(self, folder: Path) -> Booster | None:
        """The booster, where it is made already."""
        return training.trained_before(self.path(folder), self.identity)


def trainings(lm: SteeredHFLM, plan: Plan) -> list[Training]:
    """The boosters that a plan makes for a model.

    Documents that any of the plan's evaluations asks are not learned from.

    Raises:
        TaskError: A task that cannot be loaded or learned from.
    """
    asked = _asked(plan)
    found = []
    for name, selections in plan.sources.items():
        loaded = load_tasks(selections, plan.prompting.include_path)
        tasks = tuple(
            _apart(task_examples(selection, task, plan.prompting, lm, plan.settings.split_seed), asked)
            for selection, task in loaded
        )
        # What a study says of choices is not for boosters that learn from none.
        choices = any(task.kind == "choice" for task in tasks)
        common = plan.settings if choices else replace(plan.settings, objective=None)
        for layers in plan.layers:
            for seed in plan.seeds:
                settings = replace(common, seed=seed)
                settings = settings if layers is None else replace(settings, layers=layers)
                found.append(Training(name, tasks, settings, training.training_identity(lm, tasks, settings)))
    return found


def train(lm: SteeredHFLM, one: Training, plan: Plan, folder: Path, on_progress: Callable[[Progress], None]) -> Booster:
    """Makes a booster, or loads it where it is made already."""
    booster = one.made(folder)
    if booster is None:
        booster = training.train(lm, one.tasks, one.settings, plan.prompting, on_progress=on_progress).booster
        one.path(folder).parent.mkdir(parents=True, exist_ok=True)
        booster.save(one.path(folder))
    return booster


def evaluate(
    lm: SteeredHFLM,
    task: Evaluation,
    boosters: Sequence[Booster],
    plan: Plan,
    folder: Path,
    store: ScoreStore,
    on_progress: OnProgress,
) -> list[dict[str, Any]]:
    """Evaluates all boosters on one task in one pass, or reads what came out where it is done already.

    Returns:
        The rows of a leaderboard.
    """
    path = _result(lm, task, boosters, plan, folder)
    if path.is_file():
        return list(json.loads(path.read_text(encoding="utf-8")))
    variants = [Variant("baseline"), *(Variant(f"booster{place}", one) for place, one in enumerate(boosters))]
    names = [task.task]
    found = evaluation.evaluate(
        lm, variants, names, plan.prompting, limit=task.limit, docs=task.docs, store=store, on_progress=on_progress
    )
    runs = [leaderboard.Run(one.results, one.results["samples"], one.variant.name) for one in found]
    rows = leaderboard.rows(runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(rows, default=str).encode())
    return rows


def wanted(task: Evaluation, made: Sequence[tuple[Training, Booster]]) -> list[Booster]:
    """The boosters that an evaluation is about."""
    return [booster for one, booster in made if task.takes(one.settings.seed)]


def _result(lm: SteeredHFLM, task: Evaluation, boosters: Sequence[Booster], plan: Plan, folder: Path) -> Path:
    """The file that an evaluation makes."""
    return folder / "results" / f"{task.task}-{_identity(lm, task, boosters, plan)[:16]}.json"


def _asked(plan: Plan) -> frozenset[str]:
    """Hashes of every document that an evaluation of the plan asks."""
    return frozenset(
        digest
        for task in plan.evaluations
        for _, loaded in load_tasks([TaskSelection(task.task)], plan.prompting.include_path)
        for _, hashes in evaluated(loaded, task.docs, task.limit)
        for digest in hashes
    )


def _apart(task: TaskExamples, asked: frozenset[str]) -> TaskExamples:
    kept = [example for example in task.train if example.document not in asked]
    if not kept:
        raise TaskError(f"task {task.task}: every training document is also evaluated on; name others with train_docs")
    development = [example for example in task.development if example.document not in asked]
    dropped = len(task.train) + len(task.development) - len(kept) - len(development)
    return replace(task, train=kept, development=development, overlapping=task.overlapping + dropped)


def _identity(lm: SteeredHFLM, task: Evaluation, boosters: Sequence[Booster], plan: Plan) -> str:
    """SHA-256 of everything that an evaluation depends on."""
    loaded = load_tasks([TaskSelection(task.task)], plan.prompting.include_path)
    told = {
        "model": lm.cache_identity(),
        "boosters": [(booster.sha256, booster.provenance.get("seed")) for booster in boosters],
        "evaluation": asdict(task),
        "prompting": {**asdict(plan.prompting), "include_path": None},
        "config": [one.dump_config() for _, one in loaded],
        "documents": [doc for _, one in loaded for doc, _ in evaluated(one, task.docs, task.limit)],
        "versions": {**training.versions(), "aft-harness": aft_harness.__version__},
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def estimates(lm: SteeredHFLM, plan: Plan, folder: Path) -> Iterator[tuple[str, float | None]]:
    """Every cell of a plan with about how many seconds it takes; None where it is done already.

    From the tokens that a cell lays out and the speed of short trials. A backward pass counts as two forward ones, and
    a text as the longest that it may be.
    """
    cells = trainings(lm, plan)
    count = len(lm.engine.layers)
    second = _seconds_per_token(lm, cells[0])
    made = [(one, one.made(folder)) for one in cells]
    lowest = {one.identity: training.chosen_layers(one.settings.layers, count)[0] for one in cells}
    for one, booster in made:
        upper = 1 - lowest[one.identity] / count
        learned = _tokens([example for task in one.tasks for example in task.train])
        watched = _tokens([example for task in one.tasks for example in task.development])
        passes = learned * (1 - upper + 3 * upper * one.settings.epochs)
        passes += watched * (1 - upper + upper * (one.settings.epochs + 1))
        yield f"train {one.name}, seed {one.settings.seed}", None if booster else second * passes
    for task in plan.evaluations:
        these = [(one, booster) for one, booster in made if task.takes(one.settings.seed)]
        boosters = [booster for _, booster in these if booster]
        done = len(boosters) == len(these) and _result(lm, task, boosters, plan, folder).is_file()
        seconds = None
        if not done:
            uppers = [1 - lowest[one.identity] / count for one, _ in these]
            tokens, steps, prompts = _cost(lm, task, plan, uppers)
            seconds = second * tokens + (steps * _seconds_per_step(lm, prompts) if steps else 0.0)
        yield f"evaluate {task.task}, {len(these)} boosters", seconds


def _seconds_per_token(lm: SteeredHFLM, one: Training) -> float:
    examples = one.tasks[0].train[:32]
    requests = [request for example in examples for request in example.requests]
    for _ in range(2):  # the first pass also tries what the model can do
        start = time.perf_counter()
        lm.score_variants(requests, [None])
        seconds = time.perf_counter() - start
    return seconds / _tokens(examples)


def _seconds_per_step(lm: SteeredHFLM, prompts: Sequence[Sequence[int]]) -> float:
    """Of writing one token after each prompt of a batch."""
    width = min(map(len, prompts))
    tokens = torch.tensor([list(prompt[-width:]) for prompt in prompts], device=lm.device)
    settings: dict[str, Any] = {"do_sample": False, "pad_token_id": lm.eot_token_id}
    seconds = []
    for count in (1, 1, 1 + TRIAL_STEPS):  # the first text warms up, the second is all that is not a further step
        start = time.perf_counter()
        lm.model.generate(
            tokens, attention_mask=torch.ones_like(tokens), min_new_tokens=count, max_new_tokens=count, **settings
        )
        seconds.append(time.perf_counter() - start)
    return max(seconds[2] - seconds[1], 0.0) / TRIAL_STEPS


def _texts(lm: SteeredHFLM) -> int:
    """Texts that are written at a time."""
    return lm.batch_size if isinstance(lm.batch_size, int) else 1


def _tokens(examples: Sequence[Example]) -> int:
    """Distinct tokens that examples lay out."""
    sequences = [request.inputs for example in examples for request in example.requests]
    return packing.stats(packing.pack(sequences, [1] * len(sequences), 256))[0] if sequences else 0


def _cost(
    lm: SteeredHFLM, task: Evaluation, plan: Plan, uppers: Sequence[float]
) -> tuple[float, int, list[tuple[int, ...]]]:
    """What an evaluation takes of variants that run a fraction of the layers each.

    Returns:
        Tokens that are read through all layers, steps of a batch of texts that are written, and a batch's prompts.
    """
    tokens, steps, prompts = 0.0, 0, []
    for _, loaded in load_tasks([TaskSelection(task.task)], plan.prompting.include_path):
        start, stop = bounds(task.docs) if task.docs else (0, task.limit)
        rows = f"{loaded.config.test_split or loaded.config.validation_split}[{start or ''}:{stop or ''}]"
        writing, longest = loaded.OUTPUT_TYPE == "generate_until", (loaded.config.generation_kwargs or {})
        examples = task_examples(TaskSelection(task.task, train_docs=rows), loaded, plan.prompting, lm).train
        if writing:  # every variant reads and writes on its own
            variants = 1 + len(uppers)
            tokens += variants * _tokens(examples)
            written = int(longest.get("max_gen_toks") or lm.max_gen_toks)
            steps += variants * written * math.ceil(len(examples) / _texts(lm))
            prompts = [example.requests[0].context for example in examples[: _texts(lm)]]
        else:
            tokens += _tokens(examples) * (1 + sum(uppers))
    return tokens, steps, prompts
