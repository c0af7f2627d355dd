"""Makes boosters by gradient descent: Activation Fine-Tuning.

The model is frozen; what is learned is the injection that lowers the loss on the right answers. Knows examples, a
loaded model and Adam. Knows nothing of tasks' formats or of the command line.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from aft_harness.boosters.booster import Booster
from aft_harness.engine.memory import discard_weights, peak_memory, release, trim
from aft_harness.engine.steering import training_injections
from aft_harness.errors import TrainingError
from aft_harness.harness.examples import TaskExamples
from aft_harness.harness.model import SteeredHFLM
from aft_harness.progress import OnTraining, TrainingProgress, ignore
from aft_harness.training import optimiser, own_texts
from aft_harness.training.checkpoint import Checkpoint
from aft_harness.training.groundwork import Clock, frozen, kept_texts, provenance, relative_norms, started
from aft_harness.training.hidden_states import HiddenStates
from aft_harness.training.keeping import Keeping
from aft_harness.training.loop import run_epoch
from aft_harness.training.memory import Memory
from aft_harness.training.prepared_objective import PreparedObjective
from aft_harness.training.recipe import Settings
from aft_harness.training.result import TrainingResult, finished, loss_table
from aft_harness.training.resumption import ResumableProgress

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
    disposable: bool = False,
    on_progress: OnTraining = ignore,
) -> TrainingResult:
    """Learns a booster for `lm`'s model, which is left as it was unless it is disposable.

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
        resume: File for the state of the training, which an interrupted one goes on from, bit for bit; None keeps none.
            It is the caller's to remove once the booster is safe.
        disposable: Nobody needs the model afterwards: the weights of layers that only the cached hidden states need are
            discarded once these are there.
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
    origin = provenance(lm, tasks, settings, start, keep_texts)
    clock = Clock()
    with ExitStack() as stack:
        hidden = stack.enter_context(HiddenStates(bounds.cache))
        stack.enter_context(frozen(lm.model))
        with clock("caching"):
            texts = kept_texts(lm, settings, keep_texts)  # before the attention changes, as generation would run
            trim()  # their keys and values
        stack.enter_context(lm.engine.differentiated())
        with clock("caching"):
            objective = PreparedObjective(lm.engine, tasks, settings, lowest=chosen[0], limit=bounds.passes)
            steps = settings.epochs * math.ceil(len(objective.train) / settings.batch_size)
            objective.prepared.cache(chosen[0], hidden, partial(_report_caching, on_progress, steps))
            keeping = stack.enter_context(Keeping(lm.engine, texts, hidden)) if texts else None
            if keeping is not None:
                keeping.cache(chosen[0], partial(_report_caching, on_progress, steps))
            if disposable and objective.prepared.cached and (keeping is None or keeping.cached):
                discard_weights(lm.model, list(lm.engine.layers)[: chosen[0] + 1])
        watched = objective.development or objective.train[:WATCHED]
        with clock("scoring"):
            before = objective.score(watched, lm.processes)
        residual = objective.prepared.residual(chosen, objective.train[:RESIDUAL_EXAMPLES])
        scales = {layer: optimiser.residual_scale(output) for layer, output in residual.items()}
        outputs = stack.enter_context(hidden.beside())  # of all layers, which together may be a gigabyte
        for layer in chosen:
            outputs.append(residual.pop(layer))
        release()
        objective.prepared.limit = bounds.left(lm.device).passes
        adam = optimiser.adam(injections, settings.lr, scales if settings.rate_unit == "residual" else None)
        schedule = optimiser.scheduler(adam, settings.schedule, steps)
        finite = partial(optimiser.finite, injections)
        checkpoint = Checkpoint(resume, str(origin["training_sha256"]), lm.processes)
        progress = ResumableProgress(checkpoint, injections, schedule)
        with training_injections(lm.engine.layers, injections) as at_strength, objective.steered(at_strength):

            def report(step: TrainingProgress) -> None:
                progress.save_now_and_then()
                on_progress(step)

            while progress.epoch <= settings.epochs:
                with clock("training"):
                    run_epoch(
                        objective,
                        objective.train,
                        settings,
                        schedule,
                        progress.epoch,
                        progress.losses(),
                        finite,
                        report,
                        keeping,
                        lm.processes,
                    )
                with clock("scoring"):
                    development = objective.development
                    score = objective.score(development, lm.processes) if development else None
                progress.end_epoch(score)
            kept, kept_epoch = progress.kept()
            after = progress.scores[kept_epoch - 1]
            if after is None:  # the last epoch is kept, whose parameters are in force
                with clock("scoring"):
                    after = objective.score(watched, lm.processes)
        booster = Booster.of(kept)
        relative = relative_norms(lambda layer: outputs[chosen.index(layer)], booster)
    return finished(
        booster,
        origin,
        settings,
        chosen,
        recorded={"temperatures": objective.temperatures},
        licence=licence,
        losses=loss_table(progress.epochs, progress.scores),
        epoch_losses=tuple(epoch.mean for epoch in progress.epochs),
        measured_on="development" if objective.development else "training",
        before=before,
        after=after,
        kept_epoch=kept_epoch,
        relative_norm=relative,
        seconds=progress.elapsed + time.perf_counter() - begun,
        stages=clock.seconds,
        peak_memory=peak_memory(lm.device),
    )


def train_into(
    path: Path, lm: SteeredHFLM, tasks: Sequence[TaskExamples], settings: Settings, on_progress: OnTraining = ignore
) -> Booster:
    """Trains a booster and saves it under `path`, from where an interrupted call stopped; see `train`."""
    resume = path.with_suffix(".resume")
    booster = train(lm, tasks, settings, resume=resume, on_progress=on_progress).booster
    booster.save(path)
    resume.unlink(missing_ok=True)
    release()  # who trains into files trains again and again
    return booster


def _report_caching(on_progress: OnTraining, steps: int, done: int, total: int) -> None:
    on_progress(TrainingProgress(0, steps, 0, math.nan, f"caching {done}/{total}"))
