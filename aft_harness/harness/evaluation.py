"""lm-eval tasks under several boosters at once: one pass, paired results, metrics computed by lm-eval's own code.

Knows lm-eval's evaluator and the scoring engine. A variant is a booster at a strength; the baseline is the variant
without one. Statistics are `samples.py`'s and `statistics.py`'s work.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.loggers import EvaluationTracker

from aft_harness.boosters.booster import Booster
from aft_harness.engine.scoring import Request
from aft_harness.errors import AftError, TaskError
from aft_harness.harness.examples import Prompting, TaskSelection, load_tasks, task_manager
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.score_store import Result, ScoreStore, key
from aft_harness.results.pairing import bounds, compared
from aft_harness.results.statistics import Paired
from aft_harness.training.answers import OnProgress

_TEXTS_AT_ONCE = 16
"""Texts that are generated before they are stored, where the batch size is found automatically."""


@dataclass(frozen=True)
class Variant:
    """One thing to evaluate.

    Attributes:
        name: What tables and folders call it.
        booster: None for the baseline.
        strength: Factor on the booster's delta.
    """

    name: str
    booster: Booster | None = None
    strength: float = 1.0


@dataclass(frozen=True)
class VariantResults:
    """What lm-eval computed for one variant: its results dictionary, with the samples of every task."""

    variant: Variant
    results: dict[str, Any]


def evaluate(
    lm: SteeredHFLM,
    variants: Sequence[Variant],
    tasks: Sequence[str],
    prompting: Prompting | None = None,
    *,
    limit: int | None = None,
    docs: str | None = None,
    output: Path | None = None,
    store: ScoreStore | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> list[VariantResults]:
    """Evaluates tasks under every variant, on the same documents with the same prompts.

    Loglikelihoods of all variants come from one pass, in which the layers below every booster run once; generation runs
    once a variant.

    Args:
        lm: The model, without a booster of its own.
        variants: What to evaluate; names must differ.
        tasks: lm-eval tasks or groups.
        prompting: How prompts are formatted.
        limit: Documents per task; None takes all.
        docs: Documents by id instead, as a slice `a:b`.
        output: Folder for lm-eval's own output files, one folder a variant.
        store: Where loglikelihoods and texts are kept, and looked up before they are computed.
        on_progress: Told how many requests of a task are scored, of how many.

    Raises:
        BoosterError: A booster that does not fit the model.
        TaskError: An unknown task, or one that cannot be evaluated.
    """
    prompting = prompting or Prompting()
    manager = task_manager(tasks, prompting.include_path)
    shared = _SharedPass(lm, variants, store, on_progress)
    chosen = _documents(tasks, docs, prompting.include_path) if docs else None
    multiturn = prompting.fewshot_as_multiturn
    evaluated = []
    for index, variant in enumerate(variants):
        tracker = EvaluationTracker(output_path=str(output / variant.name)) if output else None
        try:
            results = simple_evaluate(
                model=_VariantLM(shared, index),
                model_args={"pretrained": lm.base_model.name},
                tasks=list(tasks),
                task_manager=manager,
                num_fewshot=prompting.num_fewshot,
                limit=limit,
                samples=chosen,
                system_instruction=prompting.system_instruction,
                apply_chat_template=prompting.apply_chat_template,
                fewshot_as_multiturn=prompting.apply_chat_template if multiturn is None else multiturn,
                evaluation_tracker=tracker,
                log_samples=True,
                bootstrap_iters=0,
            )
        except AftError:
            raise
        except (ValueError, KeyError, AssertionError, OSError) as error:  # OSError: data that cannot be fetched
            reason = " ".join(str(error).split())[:300]
            raise TaskError(f"{', '.join(tasks)} cannot be evaluated ({type(error).__name__}: {reason})") from error
        if tracker is not None:
            samples = results["samples"]
            tracker.save_results_aggregated(results={**results, "samples": None}, samples=samples)
            for task in results["configs"]:
                tracker.save_results_samples(task_name=task, samples=samples[task])
            assert output is not None
            if not any((output / variant.name).rglob("results_*.json")):  # lm-eval only logs what went wrong
                raise TaskError(f"--output {output}: lm-eval could not write its files there")
        evaluated.append(VariantResults(variant, results))
    return evaluated


def paired(baseline: VariantResults, steered: VariantResults) -> Iterator[tuple[str, str, Paired]]:
    """Task, metric and comparison for every metric that is one number a document, of every task and filter."""
    for task, samples in baseline.results["samples"].items():
        for metric, name, found in compared(samples, steered.results["samples"][task]):
            yield task, metric if name == "none" else f"{metric},{name}", found


def _documents(tasks: Sequence[str], docs: str, include_path: Sequence[str]) -> dict[str, list[int]]:
    """The ids that a slice means in each task, as lm-eval's `samples`."""
    start, stop = bounds(docs)
    loaded = load_tasks([TaskSelection(name) for name in tasks], include_path)
    found = {selection.name: list(range(len(task.eval_docs)))[start:stop] for selection, task in loaded}
    for name, ids in found.items():
        if not ids:
            raise TaskError(f"--docs {docs}: task {name} has no document there")
    return found


class _SharedPass:
    """Scores each request once for all variants, when the first of them asks for it."""

    def __init__(
        self, lm: SteeredHFLM, variants: Sequence[Variant], store: ScoreStore | None, on_progress: OnProgress
    ) -> None:
        self.lm, self.variants = lm, variants
        self.steerings = [lm.steering_for(variant.booster, variant.strength) for variant in variants]
        self._identities = []
        for variant in variants:
            with lm.steered_as(variant.booster, variant.strength):
                self._identities.append(lm.cache_identity())
        self._store, self._on_progress = store, on_progress
        self._scored: list[dict[Request, Result]] = [{} for _ in variants]
        self._encoded: dict[tuple[str, str], Request] = {}

    def loglikelihood(self, requests: Sequence[Instance], index: int) -> list[Result]:
        for request in requests:
            if request.args not in self._encoded:
                self._encoded[request.args] = self.lm.encode(*request.args)
        wanted = [self._encoded[request.args] for request in requests]
        if any(request not in self._scored[index] for request in wanted):
            self._score(list(dict.fromkeys(wanted)))
        return [self._scored[index][request] for request in wanted]

    def _score(self, requests: Sequence[Request]) -> None:
        keys: list[list[bytes]] = []
        if self._store:
            keys = [[key(identity, *astuple(request)) for request in requests] for identity in self._identities]
            for own, scored in zip(keys, self._scored, strict=True):
                stored = self._store.get(own)
                scored.update(
                    (request, stored[key]) for request, key in zip(requests, own, strict=True) if key in stored
                )
        # One pass for the requests that the same variants lack: all of them, unless a study goes on.
        lacking: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for place, request in enumerate(requests):
            lacking[tuple(index for index, scored in enumerate(self._scored) if request not in scored)].add(place)
        done = len(lacking.pop((), []))
        for indices, wanted in lacking.items():

            def record(
                members: Sequence[int],
                results: Sequence[Sequence[Result]],
                indices: tuple[int, ...] = indices,
                wanted: set[int] = wanted,
            ) -> None:
                nonlocal done
                for index, found in zip(indices, results, strict=True):
                    pairs = dict(zip(members, found, strict=True))
                    self._scored[index].update((requests[place], result) for place, result in pairs.items())
                    if self._store:
                        self._store.put({keys[index][place]: result for place, result in pairs.items()})
                done += len(wanted.intersection(members))
                self._on_progress(done, len(requests))

            steerings = [self.steerings[index] for index in indices]
            known = set(range(len(requests))) - wanted
            self.lm.score_variants(requests, steerings, on_scored=record, known=known)

    def generate_until(self, requests: Sequence[Instance], index: int) -> list[str]:
        """Texts of one variant, a batch at a time where they are kept.

        Batches are those of all requests, whatever is known of them: see `known` of `Engine.loglikelihoods`.
        """
        variant = self.variants[index]
        with self.lm.steered_as(variant.booster, variant.strength) as lm:
            if not self._store:
                return lm.generate_until(list(requests))
            keys = [key(self._identities[index], "text", *request.args) for request in requests]
            texts = self._store.get_texts(keys)
            order = sorted(range(len(requests)), key=lambda place: -len(requests[place].args[0]))
            size = int(lm.batch_size) if lm.batch_size != "auto" else _TEXTS_AT_ONCE
            for start in range(0, len(order), size):
                places = order[start : start + size]
                if any(keys[place] not in texts for place in places):
                    written = lm.generate_until([requests[place] for place in places])
                    found = {keys[place]: text for place, text in zip(places, written, strict=True)}
                    self._store.put_texts(found)
                    texts.update(found)
                self._on_progress(min(start + size, len(order)), len(order))
        return [texts[own] for own in keys]


class _VariantLM(LM):
    """What lm-eval sees of one variant."""

    def __init__(self, shared: _SharedPass, index: int) -> None:
        super().__init__()
        self._shared, self._index = shared, index
        self._variant = shared.variants[index]

    def loglikelihood(self, requests: list[Instance]) -> list[Result]:
        with self._shared.lm.steered_as(self._variant.booster, self._variant.strength) as lm:
            lm.examine(requests)
        return self._shared.loglikelihood(requests, self._index)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        with self._shared.lm.steered_as(self._variant.booster, self._variant.strength) as lm:
            return lm.loglikelihood_rolling(requests)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return self._shared.generate_until(requests, self._index)

    @property
    def tokenizer_name(self) -> str:
        return str(self._shared.lm.tokenizer_name)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(self._shared.lm.apply_chat_template(chat_history, add_generation_prompt))

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self._shared.lm.chat_template(chat_template)

    def get_model_info(self) -> dict[str, Any]:
        with self._shared.lm.steered_as(self._variant.booster, self._variant.strength) as lm:
            return lm.get_model_info()
