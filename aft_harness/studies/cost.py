"""About how long each cell of a study takes, from short trials on the very model.

Knows a study's cells and how many tokens they lay out. A backward pass counts as two forward passes, and a text as the
longest that it may be.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from aft_harness.boosters.variant import BASELINE
from aft_harness.engine.writing import write
from aft_harness.harness.examples import examples_of
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.selection import TaskSelection
from aft_harness.harness.shared_pass import SteeredLM
from aft_harness.studies.plan import Evaluation
from aft_harness.studies.transfer import Study, TrainingCell, evaluation_name
from aft_harness.training.forecast import distinct_tokens

TRIAL_STEPS = 8
"""Tokens that a trial of writing writes."""


@dataclass(frozen=True)
class Estimate:
    """What a cell costs.

    Attributes:
        cell: What messages call it.
        seconds: About how long it takes; None where it is done already.
    """

    cell: str
    seconds: float | None


@dataclass(frozen=True)
class EvaluationCost:
    """What an evaluation takes.

    Attributes:
        tokens: Read through all layers.
        steps: Of a batch of texts that are written.
        prompts: Of one such batch.
    """

    tokens: float
    steps: int
    prompts: tuple[tuple[int, ...], ...]


def estimates(study: Study) -> Iterator[Estimate]:
    """Every cell of a study with about how many seconds it takes."""
    count = len(study.lm.engine.layers)
    second = _seconds_per_token(study.lm, study.trainings[0])
    made = [(cell, cell.made(study.folder)) for cell in study.trainings]
    upper = {cell.identity: 1 - cell.settings.layer_indices(count)[0] / count for cell in study.trainings}
    for cell, booster in made:
        part = upper[cell.identity]
        learned = distinct_tokens([example for task in cell.tasks for example in task.train])
        watched = distinct_tokens([example for task in cell.tasks for example in task.development])
        passes = learned * (1 - part + 3 * part * cell.settings.epochs)
        passes += watched * (1 - part + part * (cell.settings.epochs + 1))
        yield Estimate(str(cell), None if booster else second * passes)
    measured: tuple[Any, float] = (None, second)
    for file, asked in study.evaluations:
        cells = [(cell, booster) for cell, booster in made if asked.takes(cell.settings.seed)]
        boosters = [booster for _, booster in cells if booster]
        seconds = None
        lm = study.evaluated(file)
        if len(boosters) < len(cells) or not study.result(asked, boosters, lm).is_file():
            if measured[0] != file:
                measured = file, _seconds_per_token(lm, study.trainings[0])
            # llama.cpp has no way to go on from a layer: every variant runs all of them.
            parts = [upper[cell.identity] if file is None else 1.0 for cell, _ in cells]
            cost = evaluation_cost(study, asked, parts)
            seconds = measured[1] * cost.tokens
            seconds += cost.steps * _seconds_per_step(lm, cost.prompts) if cost.steps else 0.0
        yield Estimate(f"{evaluation_name(asked, file)}, {len(cells)} boosters", seconds)
    study.close()


def evaluation_cost(study: Study, asked: Evaluation, uppers: Sequence[float]) -> EvaluationCost:
    """What an evaluation takes of the baseline and of variants that run a fraction of the layers each.

    Args:
        study: Whose model and prompts.
        asked: The task and its documents.
        uppers: The fraction of layers that runs for each booster.
    """
    lm, tokens, steps, prompts = study.lm, 0.0, 0, []
    for task in study.tasks.leaves([asked.task]).values():
        first, last = (asked.slice.start, asked.slice.stop) if asked.slice else (0, asked.limit)
        split = task.config.test_split or task.config.validation_split
        selection = TaskSelection(asked.task, limit=None, train_docs=f"{split}[{first}:{last or ''}]")
        examples = examples_of(selection, task, lm, study.plan.prompt_format).train
        if task.OUTPUT_TYPE == "generate_until":  # every variant reads and writes by itself
            longest = task.config.generation_kwargs or {}
            variants = 1 + len(uppers)
            tokens += variants * distinct_tokens(examples)
            written = int(longest.get("max_gen_toks") or lm.max_gen_toks)
            steps += variants * written * math.ceil(len(examples) / _texts(lm))
            prompts = [example.requests[0].context for example in examples[: _texts(lm)]]
        else:
            tokens += distinct_tokens(examples) * (1 + sum(uppers))
    return EvaluationCost(tokens, steps, tuple(prompts))


def _seconds_per_token(lm: SteeredLM, cell: TrainingCell) -> float:
    examples = cell.tasks[0].train[:32]
    requests = [request for example in examples for request in example.requests]
    seconds = 0.0
    for _ in range(2):  # the first pass also tries what the model can do
        start = time.perf_counter()
        lm.score_variants(requests, [BASELINE])
        seconds = time.perf_counter() - start
    return seconds / distinct_tokens(examples)


def _seconds_per_step(lm: SteeredLM, prompts: Sequence[Sequence[int]]) -> float:
    """Of writing one token after each prompt of a batch."""
    width = min(map(len, prompts))
    cut = [list(prompt[-width:]) for prompt in prompts]
    seconds = []
    for count in (1, 1, 1 + TRIAL_STEPS):  # the first text warms up, the second is all that is not a further step
        start = time.perf_counter()
        if isinstance(lm, SteeredHFLM):
            tokens = torch.tensor(cut, device=lm.device)
            settings: dict[str, Any] = {"attention_mask": torch.ones_like(tokens), "pad_token_id": lm.eot_token_id}
            lm.model.generate(tokens, do_sample=False, min_new_tokens=count, max_new_tokens=count, **settings)
        else:
            write(lm.sequences, cut, count, beside=len(cut))
        seconds.append(time.perf_counter() - start)
    return max(seconds[2] - seconds[1], 0.0) / TRIAL_STEPS


def _texts(lm: SteeredHFLM) -> int:
    """Texts that are written at a time."""
    return lm.batch_size if isinstance(lm.batch_size, int) else 1
