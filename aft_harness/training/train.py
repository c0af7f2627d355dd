"""Makes boosters by gradient descent: Activation Fine-Tuning.

The model is frozen; what is learned is the injection that lowers the loss on the right answers. Knows examples, a
loaded model and Adam. Knows nothing of tasks' formats or of the command line.
"""

from __future__ import annotations

import datetime
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.injections import ContextualInjection, Injection, StaticInjection
from aft_harness.boosters.provenance import Documents, Provenance, Score
from aft_harness.engine.decoder import hidden_size
from aft_harness.engine.footprint import footprint
from aft_harness.engine.memory import peak_memory
from aft_harness.engine.scoring import Request
from aft_harness.engine.steering import training_injections
from aft_harness.errors import TrainingError
from aft_harness.harness.examples import TaskExamples
from aft_harness.harness.model import SteeredHFLM
from aft_harness.progress import OnTraining, TrainingProgress, ignore
from aft_harness.training import optimiser
from aft_harness.training.hidden_states import HiddenStates
from aft_harness.training.identity import objective_names, training_identity
from aft_harness.training.keeping import Keeping, sampled_texts, texts_of
from aft_harness.training.loop import EpochLosses, run_epoch
from aft_harness.training.memory import Memory
from aft_harness.training.prepared_objective import PreparedObjective
from aft_harness.training.recipe import Settings
from aft_harness.training.result import TrainingResult, loss_table
from aft_harness.versions import versions

logger = logging.getLogger(__name__)

CACHE_LIMIT = 2 * 2**30
"""Bytes of hidden states that stay in memory."""

WATCHED = 100
"""Training examples that are scored before and after where there are no development examples."""

RESIDUAL_EXAMPLES = 16
"""Training examples on which the size of the residual stream is measured."""


def train(
    lm: SteeredHFLM,
    tasks: Sequence[TaskExamples],
    settings: Settings | None = None,
    *,
    licence: str | None = None,
    cache_limit: int = CACHE_LIMIT,
    memory: int | None = None,
    start: Booster | None = None,
    keep_texts: Sequence[str] | None = None,
    on_progress: OnTraining = ignore,
) -> TrainingResult:
    """Learns a booster for `lm`'s model, which is left as it was.

    Processes of `accelerate launch` share the examples of each step, and all of them learn the same booster.

    Args:
        lm: A model without a booster.
        tasks: Training and development examples, see `harness.examples`.
        settings: How to train; None is the default recipe.
        licence: Licence of the booster; recorded in the provenance.
        cache_limit: Bytes of hidden states kept in memory; what is beyond goes to a temporary file.
        memory: Bytes that training may take, the model included; None is half of what is free. The more a pass would
            keep for its backward pass, the fewer examples it has, and gradients accumulate.
        start: Where training starts; None, and layers that it lacks, start from no change.
        keep_texts: Plain texts on which the model is held to itself; None takes texts that it writes.
        on_progress: Called while hidden states are cached and after each optimiser step.

    Raises:
        TrainingError: The loss became NaN or infinite, the objective does not fit the tasks, or `start` the settings;
            the model alone takes all the memory.
        ModelError: A layer out of range.
    """
    settings = settings or Settings()
    started = time.perf_counter()
    if lm.variant.booster is not None:
        raise TrainingError("the model already has a booster; load it without vector= to train a new one")
    chosen = settings.layer_indices(len(lm.engine.layers))
    injections = _started(lm, settings, chosen, start)
    bounds = Memory.of(lm.device, memory, cache_limit)
    clock = _Clock()
    epochs: list[EpochLosses] = []
    scores: list[Score | None] = []
    best: tuple[float, int, Booster] | None = None
    with ExitStack() as stack:
        hidden = stack.enter_context(HiddenStates(bounds.cache))
        stack.enter_context(_frozen(lm.model))
        texts = _kept_texts(lm, settings, keep_texts)  # before the attention changes, as generation would run
        stack.enter_context(lm.engine.differentiated())
        with clock("caching"):
            objective = PreparedObjective(lm.engine, tasks, settings)
            steps = settings.epochs * math.ceil(len(objective.train) / settings.batch_size)
            objective.prepared.cache(chosen[0], hidden, partial(_report_caching, on_progress, steps))
            objective.prepared.bound(footprint(lm.engine, chosen[0]), bounds.passes)
            keeping = stack.enter_context(Keeping(lm.engine, texts, bounds.cache)) if texts else None
            if keeping is not None:
                keeping.cache(chosen[0], partial(_report_caching, on_progress, steps))
        watched = objective.development or objective.train[:WATCHED]
        with clock("scoring"):
            before = objective.score(watched, lm.processes)
        residual = objective.prepared.residual(chosen, objective.train[:RESIDUAL_EXAMPLES])
        scales = {layer: optimiser.residual_scale(hidden) for layer, hidden in residual.items()}
        adam = optimiser.adam(injections, settings.lr, scales if settings.rate_unit == "residual" else None)
        schedule = optimiser.scheduler(adam, settings.schedule, steps)
        finite = partial(optimiser.finite, injections)
        with training_injections(lm.engine.layers, injections) as at_strength, objective.steered(at_strength):
            for epoch in range(1, settings.epochs + 1):
                with clock("training"):
                    epochs.append(
                        run_epoch(
                            objective,
                            objective.train,
                            settings,
                            schedule,
                            epoch,
                            finite,
                            on_progress,
                            keeping,
                            lm.processes,
                        )
                    )
                with clock("scoring"):
                    development = objective.development
                    scores.append(objective.score(development, lm.processes) if development else None)
                # Without development documents there is nothing to choose by: the last epoch is kept.
                score = scores[-1]
                if best is None or score is None or score.loss < best[0]:
                    best = (score.loss if score else math.inf, epoch, Booster.of(injections))
            assert best is not None
            _, kept_epoch, kept = best
            with clock("scoring"):
                after = scores[kept_epoch - 1] or objective.score(watched, lm.processes)
        relative = _relative_norms(residual, kept)
    measured: dict[str, Any] = {
        "epoch_losses": tuple(epoch.mean for epoch in epochs),
        "measured_on": "development" if objective.development else "training",
        "before": before,
        "after": after,
    }
    hyperparameters = {**asdict(settings), "layers": list(chosen), "optimiser": "adam", "kept_epoch": kept_epoch}
    provenance = _provenance(lm, tasks, settings, start, keep_texts) | {
        **measured,
        "hyperparameters": {**hyperparameters, "temperatures": objective.temperatures},
        "licence": licence,
    }
    result = TrainingResult(
        booster=Booster(kept.injections, Provenance.of(provenance)),
        losses=loss_table(epochs, scores),
        **measured,
        kept_epoch=kept_epoch,
        relative_norm=relative,
        seconds=time.perf_counter() - started,
        stages=clock.seconds,
        peak_memory=peak_memory(lm.device),
    )
    for concern in result.concerns:
        logger.warning(concern)
    return result


def _kept_texts(lm: SteeredHFLM, settings: Settings, given: Sequence[str] | None) -> list[Request]:
    """What the model is held to itself on; nothing where that has no weight."""
    if not settings.keep:
        if given is not None:
            raise TrainingError("texts to keep need a weight; set keep")
        return []
    texts = sampled_texts(lm, settings.seed) if given is None else texts_of(lm, given, settings.seed)
    return lm.processes.gathered(texts)[0]  # the same for all processes, whatever each of them would have written


def _report_caching(on_progress: OnTraining, steps: int, done: int, total: int) -> None:
    on_progress(TrainingProgress(0, steps, 0, math.nan, f"caching {done}/{total}"))


def _provenance(
    lm: SteeredHFLM,
    tasks: Sequence[TaskExamples],
    settings: Settings,
    start: Booster | None,
    keep_texts: Sequence[str] | None,
) -> dict[str, Any]:
    """Where the booster of a training comes from, but for what came out."""
    provenance: dict[str, Any] = {
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
    return provenance | (_inherited(provenance, start) if start else {})


def _started(lm: SteeredHFLM, settings: Settings, layers: Sequence[int], start: Booster | None) -> dict[int, Injection]:
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


def _inherited(provenance: Mapping[str, Any], start: Booster) -> dict[str, Any]:
    """What a provenance owes to the booster that training started from: its tasks and documents were learned, too."""
    before = start.provenance
    return {
        "start": {"booster_sha256": start.sha256, "provenance": before.inherited()},
        "tasks": (*provenance["tasks"], *before.tasks),
        "documents": Documents.union((provenance["documents"], before.documents)),
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
