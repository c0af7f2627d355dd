"""Texts after prompts, written side by side by one model.

Whether a model can be run this way is found out by comparing it with plain forward passes. Knows token ids. Knows
nothing of texts as people read them and of boosters: whatever steering is in force applies.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aft_harness.engine.decoder import layer_settings, text_config
from aft_harness.engine.prefixes import SHORTEST, clusters
from aft_harness.engine.rows import pad
from aft_harness.engine.scoring import Engine, Request
from aft_harness.engine.shared_attention import attending
from aft_harness.engine.text_batch import Manner, OnWritten, Prompt, TextBatch, Written
from aft_harness.engine.trie import pack
from aft_harness.errors import ModelError

logger = logging.getLogger(__name__)

_REFUSALS = (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError, NotImplementedError, ModelError)


class Writer:
    """Writes texts with one model."""

    def __init__(self, engine: Engine) -> None:
        """Prepares; nothing runs yet.

        Args:
            engine: Has the model.
        """
        self._engine = engine
        self._tried = 0  # tokens up to which the model has been compared with itself
        self._fails = False

    @torch.no_grad()
    def writes(self, prompts: Sequence[Prompt]) -> bool:
        """Whether the model can be run this way on these prompts; the longest is tried, if no longer one was."""
        longest = max(prompts, key=lambda prompt: len(prompt.tokens) + prompt.limit)
        depth = len(longest.tokens) + longest.limit
        if self._fails or depth > _reach(self._engine.model):
            return False
        if depth > self._tried:
            shortest = min(prompts, key=lambda prompt: len(prompt.tokens)).tokens
            self._engine.probe.compare_lengths(_filled(longest.tokens, depth), shortest)
            self._fails = self._engine.probe.alone or not self._agrees(longest.tokens)
            self._tried = depth
            if self._fails:
                logger.info("%s: texts are written by its own generate", type(self._engine.model).__name__)
        return not self._fails

    @torch.inference_mode()
    def write(
        self,
        prompts: Sequence[Prompt],
        manner: Manner,
        rows: int,
        on_written: OnWritten = lambda prompt, sample, written: None,
    ) -> list[list[Written]]:
        """Texts after each prompt, in the order of its seeds.

        Args:
            prompts: What is continued.
            manner: How.
            rows: Memory: as many texts as `rows` prompts of the greatest length, each with its text, would take.
            on_written: Called with each text as soon as it is finished.
        """
        found: list[list[Written | None]] = [[None] * len(prompt.seeds) for prompt in prompts]

        def take(index: int, sample: int, written: Written) -> None:
            found[index][sample] = written
            on_written(index, sample, written)

        budget = max(rows, 1) * max(len(prompt.tokens) + prompt.limit for prompt in prompts)
        for cluster in clusters([prompt.tokens for prompt in prompts]):
            batch = TextBatch(self._engine, prompts, cluster.members, cluster.prefix, manner, max(rows, 1), budget)
            with attending(self._engine.model, batch.cache):
                batch.run(take)
        return [[text for text in texts if text is not None] for texts in found]

    def _agrees(self, tokens: tuple[int, ...]) -> bool:
        """Whether texts that share segments of a prompt are predicted as by plain forward passes."""
        tokens = tokens if len(tokens) > SHORTEST else _filled(tokens, 2 * SHORTEST)
        engine, cut = self._engine, len(tokens) // 2
        prompts = [Prompt(tokens, 3, (0, 1)), Prompt((*tokens[: cut + 3], tokens[0]), 3)]
        logits: list[Tensor] = []
        try:
            batch = TextBatch(engine, prompts, (0, 1), cut, Manner(), 3, 3 * len(tokens) + 9)
            with attending(engine.model, batch.cache):
                batch.run(lambda index, sample, written: None, logits.append)
        except torch.OutOfMemoryError:
            raise
        except _REFUSALS as error:
            logger.debug("texts cannot be written side by side: %s", str(error))
            return False
        plain, expected = engine.plain(), {}
        for row, key in enumerate(((0, 0), (0, 1), (1, 0))):
            request = Request(prompts[key[0]].tokens, batch.finished[key].tokens)
            if request not in expected:
                wanted = plain.predictions(pad(pack([request.inputs], [3], 1)), [request])[0]
                expected[request] = wanted.float().log_softmax(-1)
            for step, wanted in zip(logits, expected[request], strict=True):
                difference = (step[row].float().log_softmax(-1) - wanted).abs().mean()
                if not float(difference) <= engine.probe.tolerance:
                    return False
        return True


def _reach(model: Any) -> float:
    """Tokens over which every layer of a model attends to all before: a sliding window or a chunk is shorter."""
    config = text_config(model)
    if getattr(config, "use_sliding_window", True) is False:
        return math.inf
    spans = set().union(*(layer_settings(config, name) for name in ("sliding_window", "attention_chunk_size")))
    return min((span for span in spans if span), default=math.inf)


def _filled(tokens: Sequence[int], length: int) -> tuple[int, ...]:
    """Tokens, repeated up to a length."""
    return tuple(tokens[place % len(tokens)] for place in range(length))
