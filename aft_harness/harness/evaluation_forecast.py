"""What an evaluation will take, before its model is loaded: memory and time.

The very requests are laid out, and some of them are answered by models of two and of four layers with random weights.
Knows lm-eval's requests and the model type. Knows nothing of metrics.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from aft_harness.boosters.variant import BASELINE, Variant
from aft_harness.engine.memory import peak_memory
from aft_harness.engine.scoring import Request
from aft_harness.engine.trie import distinct_tokens
from aft_harness.errors import ModelError
from aft_harness.harness.blueprint import DEEP, SHALLOW, Blueprint, Forecast
from aft_harness.harness.evaluation import ask
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.selection import PromptFormat
from aft_harness.harness.tasks import Tasks
from aft_harness.slices import Slice

TRIED = 160
"""Requests of a type that are tried."""

STEPS = 8
"""Tokens that a trial of writing writes after the first."""


@dataclass
class Asked:
    """What an evaluation asks of a model, whichever variant answers.

    Attributes:
        choices: Requests for loglikelihoods.
        rolling: Requests for loglikelihoods of whole texts.
        texts: Requests for texts.
    """

    choices: list[Instance] = field(default_factory=list)
    rolling: list[Instance] = field(default_factory=list)
    texts: list[Instance] = field(default_factory=list)

    def __str__(self) -> str:
        """Their number."""
        parts = (
            (self.choices, "loglikelihoods"),
            (self.rolling, "rolling loglikelihoods"),
            (self.texts, "texts to generate"),
        )
        return ", ".join(f"{len(each):,} {name}" for each, name in parts if each)


class _Recorder(LM):
    """Takes down what lm-eval asks, and answers nothing."""

    def __init__(self, lm: SteeredHFLM) -> None:
        super().__init__()
        self._lm, self.asked = lm, Asked()

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        self.asked.choices += requests
        return [(0.0, False)] * len(requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        self.asked.rolling += requests
        return [0.0] * len(requests)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        self.asked.texts += requests
        return [""] * len(requests)

    @property
    def tokenizer_name(self) -> str:
        return str(self._lm.tokenizer_name)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(self._lm.apply_chat_template(chat_history, add_generation_prompt))


def forecast(
    blueprint: Blueprint,
    variants: Sequence[Variant],
    tasks: Sequence[str],
    prompt_format: PromptFormat | None = None,
    *,
    source: Tasks,
    limit: int | None = None,
    docs: Slice | None = None,
    confirm_run_unsafe_code: bool = False,
) -> Forecast:
    """Estimates what `evaluation.evaluate` will take; texts count as the longest that they may be.

    Args:
        blueprint: Of the model.
        variants: See `evaluation.evaluate`; so are all further arguments.
        tasks: See `evaluation.evaluate`.
        prompt_format: See `evaluation.evaluate`.
        source: See `evaluation.evaluate`.
        limit: See `evaluation.evaluate`.
        docs: See `evaluation.evaluate`.
        confirm_run_unsafe_code: See `evaluation.evaluate`.

    Raises:
        BoosterError: A booster that does not fit the model.
        ModelError: The batch size is to be found automatically, which takes the model.
        TaskError: An unknown task, or one that cannot be evaluated.
    """
    for variant in variants:
        if variant.booster is not None:
            variant.booster.check_fits(blueprint.hidden, blueprint.layers, blueprint.architecture)
    with blueprint.built(SHALLOW) as lm:
        if lm.batch_size == "auto":
            raise ModelError("what batch size auto takes cannot be estimated without the model; name a number")
        recorder = _Recorder(lm)
        options: dict[str, Any] = {"limit": limit, "docs": docs, "confirm_run_unsafe_code": confirm_run_unsafe_code}
        ask(recorder, tasks, prompt_format, source=source, **options)
        asked, requests = recorder.asked, _encoded(lm, recorder.asked.choices)
        shallow = _Trial.of(lm, asked)
    with blueprint.built(DEEP) as lm:
        deep = _Trial.of(lm, asked)
        _largest(lm, requests)
        taken = max((peak_memory(lm.device) or 0) - blueprint.weights_of(DEEP), 0)
        texts = int(lm.batch_size)
        beside = blueprint.keys_and_values * texts * max(map(_length(lm), asked.texts), default=0)
        tokens = {"loglikelihoods": _distinct(requests), "rolling loglikelihoods": _whole(lm, asked.rolling)}
        written = math.ceil(len(asked.texts) / texts) * max((_longest(lm, each) for each in asked.texts), default=0)
        read = sum(len(lm.tok_encode(each.args[0])) for each in asked.texts)
    layers = [blueprint.layers, *(_above(variant, blueprint.layers) for variant in variants[1:])]
    runs = {"loglikelihoods": layers, "rolling loglikelihoods": [blueprint.layers] * len(variants)}
    seconds = {
        kind: count * sum(shallow.at(deep, kind, each) for each in runs[kind])
        for kind, count in tokens.items()
        if count
    }
    if asked.texts:
        a_variant = read * shallow.at(deep, "reading", blueprint.layers)
        a_variant += written * shallow.at(deep, "writing", blueprint.layers)
        seconds["texts"] = len(variants) * a_variant
    memory = {"program": taken, "weights": blueprint.weights, "keys and values": beside}
    return Forecast({use: size for use, size in memory.items() if size}, 0, seconds, str(asked))


@dataclass(frozen=True)
class _Trial:
    """How long a model of few layers takes: seconds for a token by type of request, `writing` for a step of a batch."""

    layers: int
    seconds: Mapping[str, float]

    @classmethod
    def of(cls, lm: SteeredHFLM, asked: Asked) -> _Trial:
        found = {}
        if some := _spread(asked.choices):
            requests = _encoded(lm, some)
            found["loglikelihoods"] = _second(lambda: lm.score_variants(requests, [BASELINE])) / _distinct(requests)
        if some := _spread(asked.rolling)[:8]:
            rolled = _second(lambda: lm.loglikelihood_rolling(some, disable_tqdm=True))
            found["rolling loglikelihoods"] = rolled / _whole(lm, some)
        if some := _spread(asked.texts)[: int(lm.batch_size)]:
            first, last = (_second(partial(_write, lm, some, count)) for count in (1, 1 + STEPS))
            found["reading"] = first / sum(len(lm.tok_encode(each.args[0])) for each in some)
            found["writing"] = max(last - first, 0.0) / STEPS
        return cls(len(lm.engine.layers), found)

    def at(self, deeper: _Trial, kind: str, layers: int) -> float:
        """Seconds of a model with so many layers."""
        slope = max(deeper.seconds[kind] - self.seconds[kind], 0.0) / (deeper.layers - self.layers)
        return max(self.seconds[kind] + slope * (layers - self.layers), 0.0)


def _second(run: Callable[[], object]) -> float:
    """Seconds of a second run: the first tries what the model can do."""
    run()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _spread(requests: Sequence[Instance]) -> list[Instance]:
    """Requests of some documents, evenly spread over all."""
    documents = list(dict.fromkeys((request.task_name, request.doc_id) for request in requests))
    each = max(len(requests) // max(len(documents), 1), 1)
    step = max(len(documents) * each // TRIED, 1)
    wanted = set(documents[::step])
    return [request for request in requests if (request.task_name, request.doc_id) in wanted]


def _largest(lm: SteeredHFLM, requests: Sequence[Request]) -> None:
    """Scores the longest requests, as many as a pass holds: the peak of memory."""
    longest = sorted(requests, key=lambda request: -len(request.inputs))
    if longest:
        lm.score_variants(longest[: 4 * int(lm.batch_size)], [BASELINE])


def _write(lm: SteeredHFLM, requests: Sequence[Instance], tokens: int) -> None:
    settings: dict[str, Any] = {"until": [], "max_gen_toks": tokens, "do_sample": False}
    asked = [
        Instance("generate_until", doc={}, arguments=(request.args[0], settings), idx=place)
        for place, request in enumerate(requests)
    ]
    lm.generate_until(asked, disable_tqdm=True)


def _encoded(lm: SteeredHFLM, requests: Sequence[Instance]) -> list[Request]:
    distinct = dict.fromkeys(request.args for request in requests)
    return [lm.encode(*each) for each in distinct]


def _distinct(requests: Sequence[Request]) -> int:
    """Distinct tokens that requests lay out."""
    return distinct_tokens([request.inputs for request in requests])


def _whole(lm: SteeredHFLM, requests: Sequence[Instance]) -> int:
    return sum(len(lm.tok_encode(request.args[0])) for request in requests)


def _longest(lm: SteeredHFLM, request: Instance) -> int:
    """Tokens that a text may have."""
    return int(request.args[1].get("max_gen_toks") or lm.max_gen_toks)


def _length(lm: SteeredHFLM) -> Callable[[Instance], int]:
    return lambda request: min(len(lm.tok_encode(request.args[0])) + _longest(lm, request), lm.max_length)


def _above(variant: Variant, layers: int) -> int:
    """Layers that run for a variant beside the unchanged model."""
    return layers - 1 - min(variant.booster.layers) if variant.booster and variant.booster.layers else layers
