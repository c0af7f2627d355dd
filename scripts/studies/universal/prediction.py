"""What a phase will take on this machine, before a model is loaded: memory and time of each model's study.

Knows the forecasts of the library and how the parts of a study add up. For models that are not at hand it makes the
folder that a forecast needs of their published sizes.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pandas as pd

from aft_harness.digests import digest
from aft_harness.errors import ModelError
from aft_harness.files import write_atomically
from aft_harness.harness import preflight
from aft_harness.studies.plan import Plan

from .tools import ROADMAP, updated

KEPT = "forecasts.json"
"""File of the work folder with what was predicted: a resumed run does not try again."""


@dataclass(frozen=True)
class Prediction:
    """What the study of one model takes.

    Attributes:
        model: Its name.
        memory: Bytes at the peak.
        weights: Bytes of them that are the model's.
        training: Seconds of all trainings.
        evaluation: Seconds of all evaluations.
        boosters: Number of trainings.
        threads: Of the processor.
    """

    model: str
    memory: int
    weights: int
    training: float
    evaluation: float
    boosters: int
    threads: int

    def __str__(self) -> str:
        """One line."""
        from aft_harness.cli.terminal import duration

        return (
            f"{self.model}: about {self.memory / 2**30:.1f} GiB (weights {self.weights / 2**30:.1f}); "
            f"{self.boosters} boosters {duration(self.training)}, evaluation {duration(self.evaluation)}, "
            f"and loading the model"
        )


def predicted(plan: Plan, work: Path | None = None, name: str | None = None, key: str | None = None) -> Prediction:
    """What a plan with one model takes on this machine.

    Args:
        plan: Of one model.
        work: Folder in which predictions are kept; None keeps none.
        name: What the model is called; by default what the plan calls it.
        key: What its prediction is kept by, where the plan's folder is made anew each time.

    Raises:
        AftError: The model's configuration or tokenizer, or a task cannot be had.
    """
    (model,) = plan.models
    kept = _read(work)
    asked = {**model, **({"pretrained": key} if key else {})}
    key = digest([asked, *(repr(getattr(plan, part)) for part in ("sources", "evaluations", "seeds", "settings"))])
    if key not in kept:
        preflight.check(
            str(model["pretrained"]), {name: value for name, value in model.items() if name != "pretrained"}
        )
        path = Path(str(model["pretrained"]))
        called = name or (path.name if path.is_dir() else str(path))
        # A process of its own: what earlier forecasts have taken would count as memory of this one.
        with ProcessPoolExecutor(1, get_context("spawn"), initializer=_end_with_parent) as pool:
            try:
                found = pool.submit(_measured, plan, called).result()
            except BrokenProcessPool:
                raise ModelError(f"{called}: the forecast was ended from outside, perhaps for want of memory") from None
        kept[key] = asdict(found)
        if work is not None:
            write_atomically(work / KEPT, json.dumps(kept, indent=1).encode())
    return Prediction(**kept[key])


def _end_with_parent() -> None:
    """Ends this process as soon as the one that started it is gone, and not when its forecast is done."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _measured(plan: Plan, name: str) -> Prediction:
    from aft_harness.cli.terminal import quiet

    with quiet():
        return _tried(plan, name)


def _tried(plan: Plan, name: str) -> Prediction:
    import torch

    from aft_harness.api.evaluation import forecast_evaluation
    from aft_harness.api.training import forecast

    (model,) = plan.models
    place, arguments = str(model["pretrained"]), {key: value for key, value in model.items() if key != "pretrained"}
    settings = {key: value for key, value in asdict(plan.settings).items() if key not in ("layers", "seed")}
    common: dict[str, Any] = {"include_path": plan.include_path, "model_args": arguments}
    trainings = [
        forecast(place, tasks=list(selections), layers=plan.settings.layers, **common, **settings)
        for selections in plan.sources.values()
    ]
    variants = _invented(place, arguments, len(trainings) * len(plan.seeds))
    evaluations = [
        forecast_evaluation(place, [each.task], variants, limit=each.limit, docs=each.slice, **common)
        for each in plan.evaluations
    ]
    return Prediction(
        name,
        memory=max(each.peak for each in (*trainings, *evaluations)),
        weights=trainings[0].memory["weights"],
        training=len(plan.seeds) * sum(each.duration for each in trainings),
        evaluation=sum(each.duration for each in evaluations),
        boosters=len(variants),
        threads=torch.get_num_threads(),
    )


def _invented(model: str, arguments: Mapping[str, Any], count: int) -> list[Any]:
    """Boosters that change nothing, at the layers where trained ones will act."""
    import torch

    from aft_harness.boosters.booster import Booster
    from aft_harness.boosters.variant import Variant
    from aft_harness.engine.skeleton import read_config

    config = read_config(model, revision=arguments.get("revision")).get_text_config(decoder=True)
    booster = Booster.static({layer: torch.zeros(config.hidden_size) for layer in range(1, config.num_hidden_layers)})
    return [Variant(f"booster {number}", booster) for number in range(count)]


@contextmanager
def published(sizes: Mapping[str, Any]) -> Iterator[str]:
    """A folder with the configuration of a model that is not at hand, and the tokenizer of the embedded model.

    The vocabulary is at least as large as that of the embedded model, whose tokens it must be able to predict.

    Args:
        sizes: `published` of `models.yaml`.
    """
    from transformers import AutoConfig, AutoTokenizer

    from aft_harness.demo import model_folder

    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = AutoTokenizer.from_pretrained(model_folder())
        whole = {**_roadmap(sizes.get("roadmap")), **{name: sizes[name] for name in sizes if name != "roadmap"}}
        whole["vocab_size"] = max(int(whole["vocab_size"]), len(tokenizer))
        special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        AutoConfig.for_model(**whole, **special, dtype="bfloat16").save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        yield scratch


def _roadmap(name: str | None) -> Mapping[str, Any]:
    """A configuration of the tool that tries the library on many kinds of models, which is the one place for these."""
    return {} if name is None else ROADMAP[name]


def _read(work: Path | None) -> dict[str, Any]:
    place = None if work is None else work / KEPT
    return {} if place is None or not place.is_file() else dict(json.loads(place.read_text(encoding="utf-8")))


def add(place: Path, found: Prediction, order: Sequence[str]) -> None:
    """Writes a prediction into a table, in which models are in a given order."""
    rounded = {"training": round(found.training, 1), "evaluation": round(found.evaluation, 1)}
    updated(place, [{**asdict(found), **rounded}], "model", order)


def lines(place: Path) -> list[str]:
    """The table, in Markdown."""
    heads = ("model", "weights, GiB", "memory, GiB", "boosters", "training, h", "evaluation, h", "threads")
    found = [f"| {' | '.join(heads)} |", "|---|--:|--:|--:|--:|--:|--:|"]
    for row in pd.read_csv(place).to_dict("records"):
        sizes = f"{row['weights'] / 2**30:.1f} | {row['memory'] / 2**30:.1f}"
        hours = f"{row['training'] / 3600:.1f} | {row['evaluation'] / 3600:.1f}"
        found.append(f"| {row['model']} | {sizes} | {row['boosters']} | {hours} | {row['threads']} |")
    return found
