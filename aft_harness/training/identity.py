"""Which training is this: a digest of everything it depends on, by which finished work is found again.

Knows settings and examples. The digest holds names of fields: renaming a field of `Settings` is another training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from aft_harness.boosters import file_format
from aft_harness.boosters.booster import Booster
from aft_harness.errors import BoosterError
from aft_harness.harness.examples import TaskExamples
from aft_harness.harness.model import SteeredHFLM
from aft_harness.training.recipe import Settings, objective_of


def training_identity(
    lm: SteeredHFLM,
    tasks: Sequence[TaskExamples],
    settings: Settings,
    start: Booster | None = None,
    keep_texts: Sequence[str] | None = None,
) -> str:
    """SHA-256 of all that a training depends on: model, dtype, settings, start, and the very tokens it learns from."""
    digest = hashlib.sha256()
    depends = {
        **settings.recorded(),
        "layers": settings.layer_indices(len(lm.engine.layers)),
        "objective": objective_names(tasks, settings),
        "model": lm.base_model.fingerprint,
        "dtype": str(lm.model.dtype),
    }
    if start:
        depends["start"] = start.sha256
    if settings.on_own_texts:
        depends["judges"] = [task.judge.reward for task in tasks if task.judge is not None]
    if keep_texts is not None:
        depends["keep_texts"] = list(keep_texts)
    digest.update(json.dumps(depends, sort_keys=True).encode())
    for task in tasks:
        for example in (*task.development, None, *task.train):
            if example is not None:
                described = (example.task, example.gold, example.weight, example.choices)
                tokens = [(request.context, request.continuation) for request in example.requests]
                digest.update(json.dumps((described, tokens)).encode())
            digest.update(b"|")
    return digest.hexdigest()


def objective_names(tasks: Sequence[TaskExamples], settings: Settings) -> str:
    """What is minimised, as `answer+both` where tasks differ."""
    return "+".join(sorted({objective_of(task.kind, settings.objective) for task in tasks}))


def trained_before(path: Path, identity: str) -> Booster | None:
    """The booster in a file, where it came from the very training that `identity` is of.

    A process that was killed after it had saved the booster has left the training's state beside it: that is removed.
    """
    try:
        booster = file_format.load(path)
    except BoosterError:
        return None
    if booster.provenance.training_sha256 != identity:
        return None
    with suppress(OSError):
        path.with_suffix(".resume").unlink(missing_ok=True)
    return booster
