"""Makes boosters by gradient descent: Activation Fine-Tuning.

The model is frozen; what is learned is the injection that lowers the loss on the right answers. Knows examples, a
loaded model and Adam. Knows nothing of tasks' formats or of the command line.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.provenance import Provenance, Score
from aft_harness.engine.footprint import footprint
from aft_harness.engine.memory import peak_memory
from aft_harness.engine.steering import training_injections
from aft_harness.errors import TrainingError
from aft_harness.harness.examples import TaskExamples
from aft_harness.harness.model import SteeredHFLM
from aft_harness.progress import OnTraining, TrainingProgress, ignore
from aft_harness.training import optimiser, own_texts
from aft_harness.training.groundwork import Clock, frozen, kept_texts, provenance, relative_norms, started
from aft_harness.training.hidden_states import HiddenStates
from aft_harness.training.keeping import Keeping
from aft_harness.training.loop import EpochLosses, run_epoch
from aft_harness.training.memory import Memory
from aft_harness.training.prepared_objective import PreparedObjective
from aft_harness.training.recipe import Settings
from aft_harness.training.result import TrainingResult, loss_table

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
    resume: Path | None = None,
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
        resume: File for the state of a training on the model's own texts, which an interrupted one goes on from; None
            keeps none. Other objectives start again.
        on_progress: Called while hidden states are cached and after each optimiser step.

    Raises:
        TrainingError: The loss became NaN or infinite, the objective does not fit the tasks, or `start` the settings;
            the model alone takes all the memory.
        ModelError: A layer out of range.
    """
    settings = settings or Settings()
    begun = time.perf_counter()
    if lm.variant.booster is not None:
        raise TrainingError("the model already has a booster; load it without vector= to train a new one")
    bounds = Memory.of(lm.device, memory, cache_limit)
    if settings.on_own_texts:
        if lm.processes.count > 1:
            raise TrainingError(f"the objective {settings.objective} is trained by one process; start it alone")
        return own_texts.learn(
            lm,
            tasks,
            settings,
            licence=licence,
            bounds=bounds,
            start=start,
            keep_texts=keep_texts,
            resume=resume,
            on_progress=on_progress,
        )
    chosen = settings.layer_indices(len(lm.engine.layers))
    injections = started(lm, settings, chosen, start)
    clock = Clock()
    epochs: list[EpochLosses] = []
    scores: list[Score | None] = []
    best: tuple[float, int, Booster] | None = None
    with ExitStack() as stack:
        hidden = stack.enter_context(HiddenStates(bounds.cache))
        stack.enter_context(frozen(lm.model))
        texts = kept_texts(lm, settings, keep_texts)  # before the attention changes, as generation would run
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
        relative = relative_norms(residual, kept)
    measured: dict[str, Any] = {
        "epoch_losses": tuple(epoch.mean for epoch in epochs),
        "measured_on": "development" if objective.development else "training",
        "before": before,
        "after": after,
    }
    hyperparameters = {**settings.recorded(), "layers": list(chosen), "optimiser": "adam", "kept_epoch": kept_epoch}
    origin = provenance(lm, tasks, settings, start, keep_texts) | {
        **measured,
        "hyperparameters": {**hyperparameters, "temperatures": objective.temperatures},
        "licence": licence,
    }
    result = TrainingResult(
        booster=Booster(kept.injections, Provenance.of(origin)),
        losses=loss_table(epochs, scores),
        **measured,
        kept_epoch=kept_epoch,
        relative_norm=relative,
        seconds=time.perf_counter() - begun,
        stages=clock.seconds,
        peak_memory=peak_memory(lm.device),
    )
    for concern in result.concerns:
        logger.warning(concern)
    return result


def _report_caching(on_progress: OnTraining, steps: int, done: int, total: int) -> None:
    on_progress(TrainingProgress(0, steps, 0, math.nan, f"caching {done}/{total}"))
