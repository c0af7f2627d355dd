"""Requests scored once for all variants that lm-eval asks about, one after the other.

Knows lm-eval's requests and the model type. Knows nothing of tasks and metrics.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from aft_harness.boosters.variant import Variant
from aft_harness.engine.part import WHOLE, Part
from aft_harness.engine.scoring import Request
from aft_harness.harness.batching import KEPT_AT_ONCE, batches, is_sampled
from aft_harness.harness.gguf import SteeredGgufLM
from aft_harness.harness.guards import refuse_non_finite
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.score_store import AnswerStore, Result, content, key_of
from aft_harness.progress import OnProgress

SteeredLM = SteeredHFLM | SteeredGgufLM
"""The model types that are evaluated under several variants at once."""


class SharedPass:
    """Scores each request under all variants when the first of them asks for it."""

    def __init__(
        self,
        lm: SteeredLM,
        variants: Sequence[Variant],
        store: AnswerStore | None,
        on_progress: OnProgress,
        part: Part = WHOLE,
    ) -> None:
        """Checks that every booster fits; nothing is scored yet.

        Args:
            lm: The model, without a booster of its own.
            variants: What is evaluated.
            store: Where results are kept, and looked up before they are computed.
            on_progress: Called with how many requests are scored, and of how many.
            part: Which passes run here; what belongs to others has a score of 0.
        """
        self.models = [lm.with_variant(variant) for variant in variants]
        self._lm, self._variants = lm, variants
        self._identities = [lm.cache_identity(variant) for variant in variants] if store else []
        self._store, self._on_progress, self._part = store, on_progress, part
        # Long prompts are compared and hashed once; from then on a request is its place in `_requests`.
        self._places: dict[tuple[str, str], int] = {}
        self._requests: dict[Request, int] = {}
        self._asked: dict[int, Instance] = {}  # the first that asked for each
        self._scored: list[dict[int, Result]] = [{} for _ in variants]

    def loglikelihood(self, requests: Sequence[Instance], index: int) -> list[Result]:
        """Results of one variant."""
        for request in requests:
            if request.args not in self._places:
                encoded = self._lm.encode(*request.args)
                place = self._requests.setdefault(encoded, len(self._requests))
                self._places[request.args] = place
                self._asked.setdefault(place, request)
        places = [self._places[request.args] for request in requests]
        scored = self._scored[index]
        if any(place not in scored for place in places):
            self._score(list(dict.fromkeys(places)))
        return [scored[place] for place in places] if self._part == WHOLE else [(0.0, False)] * len(places)

    def _score(self, places: Sequence[int]) -> None:
        every = list(self._requests)
        requests = [every[place] for place in places]
        keys: list[list[bytes]] = []
        if self._store:
            contents = [content(*astuple(request)) for request in requests]
            keys = [[key_of(identity, each) for each in contents] for identity in self._identities]
            for row, scored in zip(keys, self._scored, strict=True):
                stored = self._store.get(row)
                scored.update((place, stored[key]) for place, key in zip(places, row, strict=True) if key in stored)
        # One pass for the requests that the same variants lack: all of them, unless a study is resumed.
        lacking: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for member, place in enumerate(places):
            lacking[tuple(index for index, scored in enumerate(self._scored) if place not in scored)].add(member)
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
                    asked = [self._asked[places[member]] for member in pairs]
                    scores = [score for score, _ in pairs.values()]
                    refuse_non_finite(asked, scores, self._variants[index], self._lm.weights_dtype)
                    self._scored[index].update((places[member], result) for member, result in pairs.items())
                    if self._store:
                        self._store.put({keys[index][member]: result for member, result in pairs.items()})
                done += len(wanted.intersection(members))
                self._on_progress(done, len(requests))

            variants = [self._variants[index] for index in indices]
            known = set(range(len(requests))) - wanted
            # Only what runs on several machines has parts.
            parts: dict[str, Any] = {} if self._part == WHOLE else {"part": self._part}
            self._lm.score_variants(requests, variants, on_scored=record, known=known, **parts)

    def loglikelihood_rolling(self, requests: Sequence[Instance], index: int) -> list[float]:
        """Loglikelihoods of whole texts under one variant."""
        self._on_progress(0, len(requests))
        scores: list[float] = self.models[index].loglikelihood_rolling(list(requests), disable_tqdm=True)
        self._on_progress(len(requests), len(requests))
        return scores

    def generate_until(self, requests: Sequence[Instance], index: int) -> list[str]:
        """Texts of one variant, in the model type's own batches; those that are decoded greedily are kept.

        A sampled text is none that could be looked up: another sample is asked for each time. Batches are those of all
        requests, whatever is known of them: see `known` of `Engine.loglikelihoods`.
        """
        lm = self.models[index]
        keys = {
            place: key_of(self._identities[index], content("text", *request.args))
            for place, request in enumerate(requests)
            if self._store is not None and not is_sampled(request)
        }
        stored = self._store.get_texts(list(keys.values())) if self._store is not None else {}
        texts = {place: stored[key] for place, key in keys.items() if key in stored}
        done = 0
        whole = self._part == WHOLE
        for number, batch in enumerate(
            batches(requests, lm, KEPT_AT_ONCE if self._store is not None else len(requests))
        ):
            # A sample that one worker drew is of no use to another.
            mine = whole or (self._part.takes(number) and not keys.keys().isdisjoint(batch))
            if mine and not texts.keys() >= set(batch):
                written = lm.generate_until([requests[place] for place in batch], disable_tqdm=True)
                found = dict(zip(batch, written, strict=True))
                if self._store is not None:
                    self._store.put_texts({keys[place]: text for place, text in found.items() if place in keys})
                texts |= found
            done += len(batch)
            self._on_progress(done, len(requests))
        return [texts[place] for place in range(len(requests))] if whole else [""] * len(requests)


class VariantLM(LM):
    """What lm-eval sees of one variant."""

    def __init__(self, shared: SharedPass, index: int) -> None:
        """Stands for the variant at `index`."""
        super().__init__()
        self._shared, self._index = shared, index
        self._lm = shared.models[index]

    def loglikelihood(self, requests: list[Instance]) -> list[Result]:
        """See `SharedPass`."""
        self._lm.guard(requests)
        return self._shared.loglikelihood(requests, self._index)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """See `SharedPass`."""
        return self._shared.loglikelihood_rolling(requests, self._index)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """See `SharedPass`."""
        return self._shared.generate_until(requests, self._index)

    @property
    def tokenizer_name(self) -> str:
        """See the model type."""
        return str(self._lm.tokenizer_name)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """See the model type."""
        return str(self._lm.apply_chat_template(chat_history, add_generation_prompt))
