"""Makes boosters by gradient descent: Activation Fine-Tuning.

The model is frozen; what is learned is the vector that lowers the loss on the right answers. Knows examples, a loaded
model and Adam. Knows nothing of tasks' formats or of the command line.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aft_harness import steering
from aft_harness.booster import Booster, StaticInjection
from aft_harness.errors import TrainingError
from aft_harness.examples import Example, Prompting, TaskExamples
from aft_harness.lesson import ChoiceNorm, Lesson, Objective, Score
from aft_harness.lm import SteeredHFLM
from aft_harness.states import StateStore
from aft_harness.steering import check_layer

CACHE_LIMIT = 2 * 2**30
"""Bytes of hidden states that stay in memory."""


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        layers: Decoder layers that get a vector; None means the middle one.
        objective: None means `choice` for multiple-choice tasks and `answer` otherwise.
        choice_norm: What a choice's loglikelihood is divided by before the softmax over choices; `characters` is what
            lm-eval's `acc_norm` ranks by.
        epochs: Passes over the training examples.
        lr: Learning rate of Adam.
        batch_size: Examples per optimiser step.
        seed: Seed of the order of examples.
        split_seed: Seed that parted development from training documents; recorded only.
    """

    layers: tuple[int, ...] | None = None
    objective: Objective | None = None
    choice_norm: ChoiceNorm = "none"
    epochs: int = 5
    lr: float = 1e-2
    batch_size: int = 8
    seed: int = 0
    split_seed: int = 0

    def __post_init__(self) -> None:
        """Refuses values that cannot train."""
        if self.epochs < 1 or self.batch_size < 1:
            raise TrainingError("--epochs and --batch-size must be at least 1")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise TrainingError(f"--lr {self.lr} must be a positive number")


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
        kept_epoch: The epoch whose vector was kept, from 1.
        relative_norm: Norm of the vector over the mean norm of the residual stream, by layer.
        seconds: Wall time of training, model loading excluded.
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
    peak_memory: int | None


def train(
    lm: SteeredHFLM,
    tasks: Sequence[TaskExamples],
    settings: Settings,
    prompting: Prompting | None = None,
    licence: str | None = None,
    cache_limit: int = CACHE_LIMIT,
    on_progress: Callable[[Progress], None] = lambda progress: None,
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

    Raises:
        TrainingError: The loss became NaN or infinite, or the objective does not fit the tasks.
        ModelError: A layer out of range.
    """
    started = time.perf_counter()
    if lm.booster is not None:
        raise TrainingError("the model already has a booster; load it without vector= to train a new one")
    layers = steering.decoder_layers(lm.model, lm.layers_path)
    chosen = tuple(sorted({check_layer(layer, len(layers)) for layer in settings.layers or (len(layers) // 2,)}))
    train_set = [example for task in tasks for example in task.train]
    dev_set = [example for task in tasks for example in task.development]
    watched: Sequence[Example] = dev_set or train_set
    # float32 at least: in half precision the small steps of Adam would be lost.
    shape = {"dtype": torch.promote_types(lm.model.dtype, torch.float32), "device": lm.device}
    vectors = {layer: torch.zeros(steering.hidden_size(lm.model), **shape, requires_grad=True) for layer in chosen}
    optimiser = torch.optim.Adam(vectors.values(), lr=settings.lr)
    steps = settings.epochs * math.ceil(len(train_set) / settings.batch_size)
    epoch_losses: list[float] = []
    best: tuple[float, int, dict[int, Tensor], Score | None] | None = None
    with StateStore(cache_limit) as store, _frozen(lm.model), lm.engine.differentiated():
        lesson = Lesson(
            lm.engine, tasks, chosen[0], store, objective=settings.objective, choice_norm=settings.choice_norm
        )
        lesson.prepare(lambda done, total: on_progress(Progress(0, steps, 0, math.nan, f"caching {done}/{total}")))
        before = lesson.score(watched)
        relative = _residual_norms(lesson, layers, chosen, train_set)
        injections = {layer: StaticInjection(vector) for layer, vector in vectors.items()}
        with steering.training_injections(layers, injections):
            for epoch in range(1, settings.epochs + 1):
                epoch_losses.append(_epoch(lesson, train_set, settings, vectors, optimiser, epoch, on_progress))
                score = lesson.score(dev_set) if dev_set else None
                # Without development documents there is nothing to choose by: the last epoch is kept.
                if best is None or score is None or score.loss < best[0]:
                    snapshot = {layer: vector.detach().clone() for layer, vector in vectors.items()}
                    best = (score.loss if score else math.inf, epoch, snapshot, score)
            assert best is not None
            _, kept_epoch, kept, after = best
            after = after or lesson.score(watched)
    measured_on: Literal["development", "training"] = "development" if dev_set else "training"
    provenance = {
        "base_model": lm.base_model.to_json(),
        "method": "aft",
        "objective": "+".join(sorted({lesson.objective(task.kind) for task in tasks})),
        "choice_norm": settings.choice_norm,
        "tasks": [_describe(task) for task in tasks],
        "prompting": {**asdict(prompting or Prompting()), "include_path": None},
        "hyperparameters": {**asdict(settings), "layers": list(chosen), "optimiser": "adam", "kept_epoch": kept_epoch},
        "seed": settings.seed,
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "epoch_losses": epoch_losses,
        "measured_on": measured_on,
        "before": asdict(before),
        "after": asdict(after),
        "versions": _versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "licence": licence,
        "documents": {"count": len(train_set), "hashes": sorted({example.document for example in train_set})},
    }
    return Trained(
        booster=Booster.static(kept, provenance),
        measured_on=measured_on,
        before=before,
        after=after,
        epoch_losses=tuple(epoch_losses),
        kept_epoch=kept_epoch,
        relative_norm={layer: float(kept[layer].norm()) / relative[layer] for layer in chosen},
        seconds=time.perf_counter() - started,
        peak_memory=peak_memory(lm.device),
    )


def _epoch(
    lesson: Lesson,
    examples: Sequence[Example],
    settings: Settings,
    vectors: dict[int, Tensor],
    optimiser: torch.optim.Optimizer,
    epoch: int,
    on_progress: Callable[[Progress], None],
) -> float:
    """One pass over the examples in a seeded order; returns the mean loss as it ran."""
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch))
    steps = math.ceil(len(examples) / settings.batch_size)
    total = weight_seen = 0.0
    for step in range(steps):
        batch = [examples[i] for i in order[step * settings.batch_size : (step + 1) * settings.batch_size].tolist()]
        weight = sum(example.weight for example in batch)
        optimiser.zero_grad()
        batch_loss = 0.0
        for chunk in lesson.chunks(batch):
            losses, _ = lesson.losses(chunk)
            weights = torch.tensor([example.weight for example in chunk], device=losses.device)
            loss = (losses * weights).sum() / weight
            loss.backward()
            batch_loss += loss.item()
        gradients = [vector.grad for vector in vectors.values() if vector.grad is not None]
        if not math.isfinite(batch_loss) or not all(gradient.isfinite().all() for gradient in gradients):
            raise TrainingError(f"the loss became {batch_loss} in epoch {epoch}; lower --lr {settings.lr}")
        optimiser.step()
        total += batch_loss * weight
        weight_seen += weight
        on_progress(Progress((epoch - 1) * steps + step + 1, settings.epochs * steps, epoch, total / weight_seen))
    return total / weight_seen


def _residual_norms(
    lesson: Lesson, layers: nn.ModuleList, chosen: Sequence[int], examples: Sequence[Example]
) -> dict[int, float]:
    """Mean norm of the unsteered residual stream at the output of each layer, over the tokens of some examples."""
    norms = {}
    for layer in chosen:
        with torch.no_grad(), steering.recorded(layers, layer) as outputs:
            lesson.losses(next(lesson.chunks(examples)))
        lengths = torch.cat([output.float().norm(dim=-1).flatten() for output in outputs])
        norms[layer] = float(lengths[lengths > 0].mean())  # padding of a resumed pass is zero
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


def _describe(task: TaskExamples) -> dict[str, Any]:
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


def _versions() -> dict[str, str]:
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
