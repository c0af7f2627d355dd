"""Makes boosters by gradient descent: Activation Fine-Tuning.

The model is frozen; what is learned is the injection that lowers the loss on the right answers. Knows examples, a
loaded model and Adam. Knows nothing of tasks' formats or of the command line.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from aft_harness.boosters import documents
from aft_harness.boosters.booster import Booster, base_model_key
from aft_harness.boosters.injections import ContextualInjection, Injection, StaticInjection
from aft_harness.engine import steering
from aft_harness.engine.steering import check_layer
from aft_harness.errors import BoosterError, TrainingError
from aft_harness.harness.examples import Example, Prompting, TaskExamples
from aft_harness.harness.model import SteeredHFLM
from aft_harness.training import optimiser
from aft_harness.training.hidden_states import StateStore
from aft_harness.training.lesson import Lesson, Score
from aft_harness.training.recipe import Settings, objective_of

CACHE_LIMIT = 2 * 2**30
"""Bytes of hidden states that stay in memory."""

WATCHED = 100
"""Training examples that are scored before and after where there are no development examples."""

RESIDUAL_EXAMPLES = 16
"""Training examples on which the size of the residual stream is measured."""


@dataclass(frozen=True)
class Progress:
    """What a progress bar shows after each step: steps done, steps in all, epoch, its loss so far, and what is done."""

    step: int
    steps: int
    epoch: int
    loss: float
    stage: str = "training"


@dataclass(frozen=True)
class Trained:
    """A trained booster and the account of its training.

    Attributes:
        booster: With full provenance.
        measured_on: Whether `before` and `after` are of `development` or `training` examples.
        before: The unchanged model.
        after: The model with the booster.
        epoch_losses: Mean training loss of each epoch, as it ran.
        kept_epoch: The epoch whose values were kept, from 1.
        relative_norm: Mean norm of the delta over the mean norm of the residual stream, by layer.
        seconds: Wall time, model loading excluded.
        stages: Parts of it: `caching` what the frozen layers give, `training`, and `scoring` before, between and after.
        peak_memory: Bytes; None where the system does not tell.
    """

    booster: Booster
    measured_on: Literal["development", "training"]
    before: Score
    after: Score
    epoch_losses: tuple[float, ...]
    kept_epoch: int
    relative_norm: dict[int, float]
    seconds: float
    stages: dict[str, float]
    peak_memory: int | None


def train(
    lm: SteeredHFLM,
    tasks: Sequence[TaskExamples],
    settings: Settings,
    prompting: Prompting | None = None,
    licence: str | None = None,
    cache_limit: int = CACHE_LIMIT,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    start: Booster | None = None,
) -> Trained:
    """Learns a booster for `lm`'s model, which is left as it was.

    Args:
        lm: A model without a booster.
        tasks: Training and development examples, see `examples.task_examples`.
        settings: How to train.
        prompting: How the prompts were formatted; recorded in the provenance.
        licence: Licence of the booster; recorded in the provenance.
        cache_limit: Bytes of hidden states kept in memory; what is beyond goes to a temporary file.
        on_progress: Called while hidden states are cached and after each optimiser step.
        start: Where training starts; None, and layers that it lacks, start from no change.

    Raises:
        TrainingError: The loss became NaN or infinite, the objective does not fit the tasks, or `start` the settings.
        ModelError: A layer out of range.
    """
    started = time.perf_counter()
    if lm.booster is not None:
        raise TrainingError("the model already has a booster; load it without vector= to train a new one")
    layers = lm.engine.layers
    chosen = chosen_layers(settings.layers, len(layers))
    train_set = [example for task in tasks for example in task.train]
    dev_set = [example for task in tasks for example in task.development]
    watched: Sequence[Example] = dev_set or train_set[:WATCHED]
    injections = _started(lm, settings, chosen, start)
    steps = settings.epochs * math.ceil(len(train_set) / settings.batch_size)
    epoch_losses: list[float] = []
    clock = _Clock()
    best: tuple[float, int, Booster, Score | None] | None = None
    with StateStore(cache_limit) as store, _frozen(lm.model), lm.engine.differentiated():
        with clock("caching"):
            lesson = Lesson(
                lm.engine,
                tasks,
                chosen[0],
                store,
                objective=settings.objective,
                choice_norm=settings.choice_norm,
                temperature=settings.temperature,
            )
            lesson.prepare(lambda done, total: on_progress(Progress(0, steps, 0, math.nan, f"caching {done}/{total}")))
        with clock("scoring"):
            before = lesson.score(watched)
        few = train_set[:RESIDUAL_EXAMPLES]
        residual = lesson.residual(chosen, few)
        scales = {layer: optimiser.residual_scale(hidden) for layer, hidden in residual.items()}
        adam = optimiser.adam(injections, settings.lr, scales if settings.rate_unit == "residual" else None)
        pace = optimiser.scheduler(adam, settings.schedule, steps)
        with steering.training_injections(layers, injections):
            for epoch in range(1, settings.epochs + 1):
                with clock("training"):
                    epoch_losses.append(run_epoch(lesson, train_set, settings, injections, pace, epoch, on_progress))
                with clock("scoring"):
                    score = lesson.score(dev_set) if dev_set else None
                # Without development documents there is nothing to choose by: the last epoch is kept.
                if best is None or score is None or score.loss < best[0]:
                    best = (score.loss if score else math.inf, epoch, Booster.of(injections), score)
            assert best is not None
            _, kept_epoch, kept, after = best
            with clock("scoring"):
                after = after or lesson.score(watched)
        relative = _relative_norms(residual, kept)
    measured_on: Literal["development", "training"] = "development" if dev_set else "training"
    provenance = {
        "base_model": lm.base_model.to_json(),
        "method": "aft",
        "objective": _objectives(tasks, settings),
        "choice_norm": settings.choice_norm,
        "tasks": [describe(task) for task in tasks],
        "prompting": {**asdict(prompting or Prompting()), "include_path": None},
        "hyperparameters": {
            **asdict(settings),
            "layers": list(chosen),
            "optimiser": "adam",
            "kept_epoch": kept_epoch,
            "temperatures": lesson.temperatures,
        },
        "training_sha256": training_identity(lm, tasks, settings, start),
        "seed": settings.seed,
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "epoch_losses": epoch_losses,
        "measured_on": measured_on,
        "before": asdict(before),
        "after": asdict(after),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "licence": licence,
        "documents": {"count": len(train_set), "hashes": sorted({example.document for example in train_set})},
    }
    if start:
        provenance |= _inherited(provenance, start)
    return Trained(
        booster=Booster(kept.injections, provenance),
        measured_on=measured_on,
        before=before,
        after=after,
        epoch_losses=tuple(epoch_losses),
        kept_epoch=kept_epoch,
        relative_norm=relative,
        seconds=time.perf_counter() - started,
        stages=clock.seconds,
        peak_memory=peak_memory(lm.device),
    )


def chosen_layers(layers: Sequence[int] | Literal["all"] | None, count: int) -> tuple[int, ...]:
    """The layers to train, ascending: those that are asked for, all of `count`, or the middle one.

    Raises:
        ModelError: A layer out of range.
    """
    wanted = range(count) if layers == "all" else layers or (count // 2,)
    return tuple(sorted({check_layer(layer, count) for layer in wanted}))


def training_identity(
    lm: SteeredHFLM, tasks: Sequence[TaskExamples], settings: Settings, start: Booster | None = None
) -> str:
    """SHA-256 of all that a training depends on: model, dtype, settings, start, and the examples' very tokens."""
    digest = hashlib.sha256()
    layers = chosen_layers(settings.layers, len(lm.engine.layers))
    settled = {"layers": layers, "objective": _objectives(tasks, settings)}
    said = {**asdict(settings), **settled, "model": lm.base_model.fingerprint, "dtype": str(lm.model.dtype)}
    if start:
        said["start"] = start.sha256
    digest.update(json.dumps(said, sort_keys=True).encode())
    for task in tasks:
        for example in (*task.development, None, *task.train):
            if example is not None:
                told = (example.task, example.gold, example.weight, example.choices)
                tokens = [(request.context, request.continuation) for request in example.requests]
                digest.update(json.dumps((told, tokens)).encode())
            digest.update(b"|")
    return digest.hexdigest()


def _objectives(tasks: Sequence[TaskExamples], settings: Settings) -> str:
    """What is minimised, as `answer+both` where tasks differ."""
    return "+".join(sorted({objective_of(task.kind, settings.objective) for task in tasks}))


def trained_before(path: Path, identity: str) -> Booster | None:
    """The booster in a file, where it came from the very training that `identity` is of, see `training_identity`."""
    try:
        booster = Booster.load(path)
    except BoosterError:
        return None
    return booster if booster.provenance.get("training_sha256") == identity else None


def _started(lm: SteeredHFLM, settings: Settings, layers: Sequence[int], start: Booster | None) -> dict[int, Injection]:
    """What is trained, by layer: the injections of `start`, and fresh ones where it has none."""
    size = steering.hidden_size(lm.model)
    given = start.injections if start else {}
    base = start.provenance.get("base_model") if start else None
    if isinstance(base, dict) and lm.base_model.differs_from(base):
        raise TrainingError(f"--start was made for {base_model_key({'base_model': base})}, not for this model")
    if start and start.hidden_size != size:
        raise TrainingError(f"--start has vectors of {start.hidden_size} numbers, the model's layers give {size}")
    if missing := set(given) - set(layers):
        raise TrainingError(f"--start has layer {min(missing)}, which is not trained; name it in --layers")
    if kinds := {one.spec["kind"] for one in given.values()} - {settings.kind}:
        raise TrainingError(f"--start is {', '.join(kinds)}, --kind is {settings.kind}")
    return {layer: _trainable(lm, given.get(layer) or _fresh(settings, size, layer)) for layer in layers}


def _inherited(own: Mapping[str, Any], start: Booster) -> dict[str, Any]:
    """What a provenance owes to the booster that training started from: its tasks and documents were learned, too."""
    learned, before = own["documents"], dict(start.provenance)
    hashes = documents.recorded_hashes(before) | set(learned["hashes"])
    unlisted = documents.unlisted(before)
    before.pop("documents", None)
    return {
        "start": {"booster_sha256": start.sha256, "provenance": before},
        "tasks": [*own["tasks"], *before.get("tasks", [])],
        "documents": {"count": len(hashes) + unlisted, "unlisted": unlisted, "hashes": sorted(hashes)},
    }


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


def run_epoch(
    lesson: Lesson,
    examples: Sequence[Example],
    settings: Settings,
    injections: Mapping[int, Injection],
    pace: LRScheduler,
    epoch: int,
    on_progress: Callable[[Progress], None],
) -> float:
    """One pass over the examples in a seeded order, with a step of the optimiser after each batch.

    Args:
        lesson: The objective.
        examples: What to learn from.
        settings: Batch size and seed are used.
        injections: What is trained, so that gradients that are not finite are found.
        pace: The schedule of the optimiser that steps.
        epoch: Which pass this is, from 1.
        on_progress: Called after each step.

    Returns:
        The mean loss as it ran.

    Raises:
        TrainingError: The loss or a gradient is not finite.
    """
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch))
    steps = math.ceil(len(examples) / settings.batch_size)
    total = weight_seen = 0.0
    for step in range(steps):
        batch = [examples[i] for i in order[step * settings.batch_size : (step + 1) * settings.batch_size].tolist()]
        weight = sum(example.weight for example in batch)
        pace.optimizer.zero_grad()
        batch_loss = 0.0
        for chunk in lesson.chunks(batch):
            losses, _ = lesson.losses(chunk)
            weights = torch.tensor([example.weight for example in chunk], device=losses.device)
            loss = (losses * weights).sum() / weight
            loss.backward()
            batch_loss += loss.item()
        if not math.isfinite(batch_loss) or not optimiser.finite(injections):
            raise TrainingError(f"the loss became {batch_loss} in epoch {epoch}; lower --lr {settings.lr}")
        pace.optimizer.step()
        pace.step()
        total += batch_loss * weight
        weight_seen += weight
        on_progress(Progress((epoch - 1) * steps + step + 1, settings.epochs * steps, epoch, total / weight_seen))
    return total / weight_seen


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def _relative_norms(residual: Mapping[int, Tensor], booster: Booster) -> dict[int, float]:
    """Mean norm of each layer's delta over that of its unsteered output, over the tokens of some examples."""
    norms = {}
    for layer, injection in booster.injections.items():
        hidden = residual[layer].float()
        deltas = injection.delta(hidden).expand_as(hidden)
        norms[layer] = float(deltas.norm(dim=1).mean() / hidden.norm(dim=1).mean())
    return norms


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Takes the parameters out of the gradient and gives them back as they were."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def describe(task: TaskExamples) -> dict[str, Any]:
    """What a provenance says of the examples of a task."""
    return {
        "task": task.task,
        "version": task.version,
        "split": task.split,
        "n_train": len(task.train),
        "n_development": len(task.development),
        "num_fewshot": task.num_fewshot,
        "overlapping_dropped": task.overlapping,
        "goldless_dropped": task.goldless,
        "weight": task.train[0].weight,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    packages = ("aft-harness", "lm_eval", "torch", "transformers", "datasets")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def peak_memory(device: torch.device) -> int | None:
    """Largest memory so far, bytes: of the device when it is a GPU, of this process otherwise; None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
