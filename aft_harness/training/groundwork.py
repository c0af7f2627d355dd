"""What every training begins with and what it records, whatever it minimises.

Knows a loaded model, settings and boosters. Knows nothing of losses and of how steps are taken.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.injections import ContextualInjection, Injection, StaticInjection
from aft_harness.boosters.provenance import Documents
from aft_harness.engine.decoder import hidden_size
from aft_harness.engine.scoring import Request
from aft_harness.errors import TrainingError
from aft_harness.harness.examples import TaskExamples
from aft_harness.harness.model import SteeredHFLM
from aft_harness.training.identity import objective_names, training_identity
from aft_harness.training.keeping import sampled_texts, texts_of
from aft_harness.training.recipe import Settings
from aft_harness.versions import versions


def kept_texts(lm: SteeredHFLM, settings: Settings, given: Sequence[str] | None) -> list[Request]:
    """What the model is held to itself on; nothing where that has no weight."""
    if not settings.keep:
        if given is not None:
            raise TrainingError("texts to keep need a weight; set keep")
        return []
    texts = sampled_texts(lm, settings.seed) if given is None else texts_of(lm, given, settings.seed)
    return lm.processes.gathered(texts)[0]  # the same for all processes, whatever each of them would have written


def started(lm: SteeredHFLM, settings: Settings, layers: Sequence[int], start: Booster | None) -> dict[int, Injection]:
    """What is trained, by layer: the injections of `start`, and fresh ones where it has none."""
    size = hidden_size(lm.model)
    given = start.injections if start else {}
    base = start.provenance.base_model if start else None
    if base and lm.base_model.differs_from(base):
        raise TrainingError(f"the booster to start from was made for {base.label}, not for this model")
    if start and start.hidden_size != size:
        raise TrainingError(f"the booster to start from has a hidden size of {start.hidden_size}; the model has {size}")
    if missing := set(given) - set(layers):
        raise TrainingError(
            f"the booster to start from has layer {min(missing)}, which is not trained; train that layer too"
        )
    if kinds := {injection.spec["kind"] for injection in given.values()} - {settings.kind}:
        raise TrainingError(f"the booster to start from is {', '.join(kinds)}, but the settings train {settings.kind}")
    return {layer: _trainable(lm, given.get(layer) or _fresh(settings, size, layer)) for layer in layers}


def _fresh(settings: Settings, size: int, layer: int) -> Injection:
    """An injection that changes nothing yet."""
    if settings.kind == "contextual":
        seed = settings.seed * 1_000_003 + layer
        return ContextualInjection.fresh(size, settings.rank, seed, settings.activation, settings.input_norm)
    return StaticInjection.fresh(size)


def _trainable(lm: SteeredHFLM, injection: Injection) -> Injection:
    """A copy of an injection that takes gradients."""
    # float32 at least: in half precision the small steps of Adam would be lost.
    dtype = torch.promote_types(lm.model.dtype, torch.float32)
    return injection.with_tensors(
        {name: tensor.to(lm.device, dtype, copy=True).requires_grad_() for name, tensor in injection.tensors.items()}
    )


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Takes the parameters out of the gradient and gives them back as they were."""
    # By name: a parameter that is held here could not be discarded.
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    try:
        for name in learning:
            model.get_parameter(name).requires_grad_(False)
        yield
    finally:
        for name in learning:
            model.get_parameter(name).requires_grad_(True)


def provenance(
    lm: SteeredHFLM,
    tasks: Sequence[TaskExamples],
    settings: Settings,
    start: Booster | None,
    keep_texts: Sequence[str] | None,
) -> dict[str, Any]:
    """Where the booster of a training comes from, but for what came out."""
    found: dict[str, Any] = {
        "base_model": lm.base_model,
        "method": "aft",
        "objective": objective_names(tasks, settings),
        "choice_norm": settings.choice_norm,
        "tasks": tuple(task.record() for task in tasks),
        "prompting": asdict(tasks[0].prompt_format),
        "training_sha256": training_identity(lm, tasks, settings, start, keep_texts),
        "seed": settings.seed,
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "documents": Documents.learned(example.document for task in tasks for example in task.train),
    }
    return found | (_inherited(found, start) if start else {})


def _inherited(found: Mapping[str, Any], start: Booster) -> dict[str, Any]:
    """What a provenance owes to the booster that training started from: its tasks and documents were learned, too."""
    before = start.provenance
    return {
        "start": {"booster_sha256": start.sha256, "provenance": before.inherited()},
        "tasks": (*found["tasks"], *before.tasks),
        "documents": Documents.union((found["documents"], before.documents)),
    }


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        """Nothing has been measured."""
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Adds the time that the block takes to a stage."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def relative_norms(residual: Callable[[int], Tensor], booster: Booster) -> dict[int, float]:
    """Mean norm of each layer's delta over that of its unsteered output, over the tokens of some examples.

    Args:
        residual: Gives the output of a layer.
        booster: Whose deltas are measured.
    """
    norms = {}
    for layer, injection in booster.injections.items():
        hidden = residual(layer).float()
        deltas = injection.delta(hidden).expand_as(hidden)
        norms[layer] = float(deltas.norm(dim=1).mean() / hidden.norm(dim=1).mean())
    return norms
