"""Learns from the model's own texts: rejection sampling and policy gradient, judged by a task's metric.

Joins documents, the texts that are sampled for them, an optimiser and a file to resume from. Knows nothing of tasks'
formats and of the command line.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aft_harness.boosters.booster import Booster
from aft_harness.engine.footprint import Footprint, footprint
from aft_harness.engine.memory import peak_memory, release
from aft_harness.engine.scoring import Request
from aft_harness.engine.steering import training_injections
from aft_harness.errors import TrainingError
from aft_harness.harness.examples import TaskExamples
from aft_harness.harness.model import SteeredHFLM
from aft_harness.progress import OnTraining, TrainingProgress
from aft_harness.training import optimiser
from aft_harness.training.account import State, loss_table, mean
from aft_harness.training.checkpoint import Checkpoint, copied, restored
from aft_harness.training.groundwork import Clock, frozen, kept_texts, provenance, relative_norms, started
from aft_harness.training.hidden_states import HiddenStates
from aft_harness.training.keeping import Keeping
from aft_harness.training.memory import Memory
from aft_harness.training.policy import is_informative, policy_loss, rejection_loss
from aft_harness.training.prepared import PreparedExamples
from aft_harness.training.prepared_objective import AtStrength
from aft_harness.training.recipe import Settings
from aft_harness.training.result import TrainingResult, finished
from aft_harness.training.sampling import Sampled, Sampler, measures

logger = logging.getLogger(__name__)

WATCHED = 64
"""Training documents whose likeliest texts are judged before and after, where there are no development documents."""

SAMPLED_AT_ONCE = 64
"""Documents of rejection sampling whose texts are written by one call, after which they are saved."""

RESIDUAL_EXAMPLES = 16
"""Prompts on which the size of the residual stream is measured."""


def learn(
    lm: SteeredHFLM,
    tasks: Sequence[TaskExamples],
    settings: Settings,
    *,
    licence: str | None,
    bounds: Memory,
    start: Booster | None,
    keep_texts: Sequence[str] | None,
    resume: Path | None,
    on_progress: OnTraining,
) -> TrainingResult:
    """See `train.train`, which calls this for the objectives `rejection` and `reward`."""
    begun = time.perf_counter()
    chosen = settings.layer_indices(len(lm.engine.layers))
    injections = started(lm, settings, chosen, start)
    origin = provenance(lm, tasks, settings, start, keep_texts)
    with ExitStack() as stack:
        stack.enter_context(frozen(lm.model))
        texts = kept_texts(lm, settings, keep_texts)
        stack.enter_context(lm.engine.differentiated())
        keeping = stack.enter_context(Keeping(lm.engine, texts, HiddenStates(bounds.cache))) if texts else None
        run = _Run(lm, tasks, settings, injections, keeping, on_progress)
        with run.clock("caching"):
            scales = run.scales(chosen)
            if keeping is not None:
                keeping.cache(chosen[0])
            release()
            run.bounded(footprint(lm.engine, chosen[0]), bounds.left(lm.device).passes)
        adam = optimiser.adam(injections, settings.lr, scales if settings.rate_unit == "residual" else None)
        checkpoint = Checkpoint(resume, str(origin["training_sha256"]))
        with run.clock("scoring"):
            before = run.sampler.score(run.watched)
        with training_injections(lm.engine.layers, injections) as at_strength:
            kept, state = run.epochs(adam, checkpoint, at_strength)
        assert state.best is not None
        kept_epoch = state.best[1]
        with run.clock("scoring"), training_injections(lm.engine.layers, kept):
            after = run.sampler.score(run.watched)
        booster = Booster.of(kept)
        relative = relative_norms(run.residual.__getitem__, booster)
    losses = loss_table(state.rows, state.scores)
    return finished(
        booster,
        origin,
        settings,
        chosen,
        recorded={"rewards": [task.judge.reward for task in tasks if task.judge is not None]},
        licence=licence,
        losses=losses,
        epoch_losses=tuple(losses.groupby("epoch")["loss"].mean()),
        measured_on="development" if run.development else "training",
        before=before,
        after=after,
        kept_epoch=kept_epoch,
        relative_norm=relative,
        seconds=state.elapsed + time.perf_counter() - begun,
        stages=run.clock.seconds,
        peak_memory=peak_memory(lm.device),
    )


class _Run:
    """A training on own texts, from its documents to its last epoch."""

    def __init__(
        self,
        lm: SteeredHFLM,
        tasks: Sequence[TaskExamples],
        settings: Settings,
        injections: Mapping[int, Any],
        keeping: Keeping | None,
        on_progress: OnTraining,
    ) -> None:
        self._lm, self._settings, self._injections = lm, settings, injections
        self._keeping, self._on_progress = keeping, on_progress
        self.train = [example for task in tasks for example in task.train]
        self.development = [example for task in tasks for example in task.development]
        self.watched = self.development or self.train[:WATCHED]
        self.sampler = Sampler(lm, tasks, settings.temperature or 1.0)
        self.clock = Clock()
        self.residual: dict[int, Tensor] = {}
        self._begun = time.perf_counter()
        self._footprint = Footprint(0.0, 0.0, 0.0), math.inf

    def scales(self, layers: Sequence[int]) -> dict[int, float]:
        """Typical size of the residual stream at each layer, on some prompts."""
        prepared = PreparedExamples(self._lm.engine, [example.requests for example in self.train[:RESIDUAL_EXAMPLES]])
        with torch.no_grad():
            self.residual = prepared.residual(layers, range(len(prepared)))
        return {layer: optimiser.residual_scale(hidden) for layer, hidden in self.residual.items()}

    def bounded(self, footprint: Footprint, limit: float) -> None:
        """Sets how much a pass may keep, see `PreparedExamples.bound`."""
        self._footprint = footprint, limit

    def epochs(
        self,
        adam: torch.optim.Adam,
        checkpoint: Checkpoint,
        at_strength: AtStrength,
    ) -> tuple[dict[int, Any], State]:
        """Learns; returns the injections of the epoch that is kept, and the account of all."""
        settings, state = self._settings, State()
        rates = [group["lr"] for group in adam.param_groups]
        best: dict[str, Tensor] = {}
        if (found := checkpoint.load(self._injections, adam)) is not None:
            saved, best = found
            state = State(**saved)
            logger.info("resuming in epoch %d after %d steps", state.epoch, len(state.rows))
        elapsed = state.elapsed

        def save() -> None:
            state.elapsed = elapsed + time.perf_counter() - self._begun
            checkpoint.save(self._injections, adam, best, vars(state))

        while state.epoch <= settings.epochs:
            if settings.objective == "rejection":
                self._draw(state, save)
            batches = list(self._batches(state))
            for step in range(state.step, len(batches)):
                done = (state.epoch - 1 + step / len(batches)) / settings.epochs
                for group, rate in zip(adam.param_groups, rates, strict=True):
                    group["lr"] = rate * (1.0 if settings.schedule == "constant" else 1.0 - done)
                self._step(state, batches[step], adam, at_strength, settings.epochs * len(batches))
                state.step += 1
                save()
            with self.clock("scoring"):
                score = self.sampler.score(self.development) if self.development else None
            if score is not None:
                state.scores.append(score.loss)
            # Without development documents there is nothing to choose by: the last epoch is kept.
            if state.best is None or score is None or score.loss < state.best[0]:
                state.best = (score.loss if score else math.inf, state.epoch)
                best = copied(self._injections)
            state.epoch, state.step, state.drawn = state.epoch + 1, 0, 0
            state.kept, state.seen = {}, []
            save()
        return restored(self._injections, best), state

    def _order(self, epoch: int, count: int) -> list[int]:
        seed = self._settings.seed * 1_000_003 + epoch
        return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()

    def _batches(self, state: State) -> Iterator[list[int]]:
        """The documents of each step of an epoch."""
        places = sorted(map(int, state.kept)) if self._settings.objective == "rejection" else range(len(self.train))
        order, size = self._order(state.epoch, len(places)), self._settings.batch_size
        for begin in range(0, len(order), size):
            yield [places[place] for place in order[begin : begin + size]]

    def _draw(self, state: State, save: Callable[[], None]) -> None:
        """Samples texts for every document and keeps the right ones, where some are right and some are not."""
        while state.drawn < len(self.train):
            places = range(state.drawn, min(state.drawn + SAMPLED_AT_ONCE, len(self.train)))
            found, seen = self._sampled(state, places, f"sampling {state.drawn}/{len(self.train)}")
            for place, sampled in zip(places, found, strict=True):
                if not set(sampled.rewards) <= {0.0, 1.0}:
                    other = next(reward for reward in sampled.rewards if reward not in (0.0, 1.0))
                    raise TrainingError(
                        f"objective rejection needs a reward of 0 or 1, and {self.train[place].task} gave {other:g}; "
                        "use reward"
                    )
                if is_informative(sampled.rewards):
                    right = [
                        request.continuation
                        for request, reward in zip(sampled.requests, sampled.rewards, strict=True)
                        if reward
                    ]
                    state.kept[str(place)] = [list(tokens) for tokens in dict.fromkeys(right)]
            state.drawn = places.stop
            state.seen.append(dict(seen))
            save()
        if not state.kept:
            raise TrainingError(
                f"epoch {state.epoch}: no document had right and wrong texts among {self._settings.samples} samples; "
                "use more samples or an easier task"
            )

    def _sampled(self, state: State, places: Sequence[int], stage: str) -> tuple[list[Sampled], dict[str, float]]:
        examples, settings = [self.train[place] for place in places], self._settings
        begun = time.perf_counter()

        def report(done: int, total: int) -> None:
            if not done % 8:
                self._report(state, f"{stage}, text {done}/{total}")

        with self.clock("sampling"):
            found = self.sampler.sample(examples, settings.seed, state.epoch, settings.samples, report)
        return found, measures(found, time.perf_counter() - begun)

    def _step(
        self,
        state: State,
        places: Sequence[int],
        adam: torch.optim.Adam,
        at_strength: AtStrength,
        steps: int,
    ) -> None:
        """One step of the optimiser."""
        settings, seen = self._settings, mean(state.seen)
        requests: list[tuple[Request, ...]] = []
        rewards: list[tuple[float, ...]] = []
        if settings.objective == "rejection":
            for place in places:
                context = self.train[place].requests[0].context
                requests.append(tuple(Request(context, tuple(tokens)) for tokens in state.kept[str(place)]))
        else:
            found, seen = self._sampled(state, places, "sampling")
            for sampled in found:
                if is_informative(sampled.rewards):
                    requests.append(sampled.requests)
                    rewards.append(sampled.rewards)
        adam.zero_grad()
        loss, kl, divergence = 0.0, math.nan, math.nan
        with self.clock("training"):
            if requests:
                loss, kl = self._backward(requests, rewards, len(places), at_strength)
            if self._keeping is not None:
                term = self._keeping.divergence(self._keeping.texts_of_step(len(state.rows), settings.seed))
                (settings.keep * term).backward()
                divergence = term.item()
            if not math.isfinite(loss) or not optimiser.finite(self._injections):
                raise TrainingError(
                    f"the loss became {loss} in epoch {state.epoch}; lower the learning rate ({settings.lr:g})"
                )
            adam.step()
        row = {"epoch": state.epoch, "loss": loss, "divergence": divergence, "kl": kl, "learned": len(requests)}
        state.rows.append({**row, **seen})
        self._report(state, "training", steps)

    def _backward(
        self,
        requests: Sequence[Sequence[Request]],
        rewards: Sequence[Sequence[float]],
        documents: int,
        at_strength: AtStrength,
    ) -> tuple[float, float]:
        """Adds the gradient of a batch; returns its loss, and the divergence in nats a token."""
        prepared = PreparedExamples(self._lm.engine, requests)
        prepared.bound(*self._footprint)
        reference: dict[int, Tensor] = {}
        with torch.no_grad(), at_strength(0.0):
            for chunk in prepared.chunks(range(len(prepared))):
                reference |= zip(chunk, prepared.loglikelihoods(chunk), strict=True)
        total, ratio, tokens = 0.0, 0.0, 0
        for chunk in prepared.chunks(range(len(prepared))):
            losses = []
            for place, loglikelihoods in zip(chunk, prepared.loglikelihoods(chunk), strict=True):
                lengths = [len(request.continuation) for request in requests[place]]
                ratio += float((loglikelihoods.detach() - reference[place]).sum())
                tokens += sum(lengths)
                if rewards:
                    given = torch.tensor(rewards[place], device=loglikelihoods.device)
                    losses.append(policy_loss(given, loglikelihoods, reference[place], self._settings.kl))
                else:
                    losses.append(rejection_loss(loglikelihoods, lengths))
            loss = torch.stack(losses).sum() / documents
            loss.backward()
            total += loss.item()
        return total, ratio / tokens

    def _report(self, state: State, stage: str, steps: int | None = None) -> None:
        last = state.rows[-1] if state.rows else {}
        shown = ("reward", "right", "tokens_per_second", "kl")
        figures = {name: last[name] for name in shown if not math.isnan(last.get(name, math.nan))}
        expected = self._settings.epochs * math.ceil(len(self.train) / self._settings.batch_size)
        loss = last.get("loss", math.nan)
        self._on_progress(
            TrainingProgress(len(state.rows), steps or expected, state.epoch, loss, stage, measures=figures)
        )
