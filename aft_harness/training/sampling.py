"""Texts that the model writes for training documents, and what each is worth.

Knows documents, the engine that writes, and judges. Whatever steering is in force applies. Knows nothing of losses.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteriaList

from aft_harness.boosters.provenance import Score
from aft_harness.engine.generation import PerTextStoppingCriteria
from aft_harness.engine.scoring import Request
from aft_harness.engine.text_batch import Prompt
from aft_harness.harness.examples import Example, TaskExamples
from aft_harness.harness.generation_requests import Asked
from aft_harness.harness.model import SteeredHFLM
from aft_harness.progress import OnProgress, ignore

NEGATIVE_REWARD = "negative reward"
"""The measure of a `Score` of texts: the mean reward of greedy texts, negative so that less is better."""

ROWS = 32
"""Texts that are written at once at least."""


@dataclass(frozen=True)
class Sampled:
    """The texts of one document.

    Attributes:
        requests: The prompt, and the tokens of each text.
        rewards: What each is worth.
    """

    requests: tuple[Request, ...]
    rewards: tuple[float, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return sum(len(request.continuation) for request in self.requests)


def seed_of(seed: int, epoch: int, document: str, sample: int) -> int:
    """The seed of one text, which depends on nothing but this."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}/{document}/{sample}".encode()).digest()[:7], "big")


class Sampler:
    """Writes texts for the documents of some tasks."""

    def __init__(self, lm: SteeredHFLM, tasks: Sequence[TaskExamples], temperature: float) -> None:
        """Prepares; nothing is written yet.

        Args:
            lm: The model.
            tasks: With judges.
            temperature: Of the distribution that tokens are drawn from.
        """
        self._lm, self._temperature = lm, temperature
        self._judges = {task.task: task.judge for task in tasks if task.judge is not None}
        self._asked: dict[tuple[str, str], Asked] = {}

    def sample(
        self, examples: Sequence[Example], seed: int, epoch: int, count: int, on_progress: OnProgress = ignore
    ) -> list[Sampled]:
        """Texts of each document, drawn anew in every epoch."""
        seeds = [
            tuple(seed_of(seed, epoch, example.document, sample) for sample in range(count)) for example in examples
        ]
        return self._written(examples, seeds, self._temperature, on_progress)

    def score(self, examples: Sequence[Example]) -> Score:
        """What the likeliest texts of documents are worth."""
        found = self.greedy(examples)
        rewards = [sampled.rewards[0] for sampled in found]
        mean = sum(rewards) / len(rewards)
        accuracy = mean if set(rewards) <= {0.0, 1.0} else None
        return Score(loss=-mean, accuracy=accuracy, n=len(rewards), measure=NEGATIVE_REWARD)

    def greedy(self, examples: Sequence[Example]) -> list[Sampled]:
        """The likeliest text of each document."""
        return self._written(examples, [(0,) for _ in examples], 0.0, ignore)

    def _written(
        self,
        examples: Sequence[Example],
        seeds: Sequence[tuple[int, ...]],
        temperature: float,
        on_progress: OnProgress,
    ) -> list[Sampled]:
        groups: dict[tuple[str, str], list[int]] = defaultdict(list)
        for place, example in enumerate(examples):
            settings = self._judges[example.task].settings(example.document)
            key = example.task, repr(sorted(settings.items(), key=str))
            if key not in self._asked:
                self._asked[key] = Asked(self._lm, settings)
            groups[key].append(place)
        found: dict[int, Sampled] = {}
        done, total = 0, sum(map(len, seeds))

        def count(*_: object) -> None:
            nonlocal done
            done += 1
            on_progress(done, total)

        for key, places in groups.items():
            asked = self._asked[key]
            prompts = [Prompt(examples[place].requests[0].context, asked.limit, seeds[place]) for place in places]
            for place, texts in zip(places, self._tokens(prompts, asked, temperature, count), strict=True):
                example = examples[place]
                answers = [asked.text(self._lm, tokens) for tokens in texts]
                rewards = self._judges[example.task].rewards(example.document, answers)
                context = example.requests[0].context
                found[place] = Sampled(tuple(Request(context, tokens) for tokens in texts), tuple(rewards))
        return [found[place] for place in range(len(examples))]

    def _tokens(
        self, prompts: Sequence[Prompt], asked: Asked, temperature: float, count: Any
    ) -> list[list[tuple[int, ...]]]:
        """Token ids of the texts of each prompt."""
        lm = self._lm
        with lm.steered():
            if lm.writer.writes(prompts):
                rows = max(lm.rows_at_once(), ROWS)
                written = lm.writer.write(prompts, asked.manner(lm, temperature), rows, count)
                return [[text.tokens for text in texts] for texts in written]
            return [self._generated(prompt, asked, temperature, count) for prompt in prompts]

    @torch.no_grad()
    def _generated(self, prompt: Prompt, asked: Asked, temperature: float, count: Any) -> list[tuple[int, ...]]:
        """The same by transformers' own `generate`, for a model that the engine does not fit."""
        lm, manner = self._lm, asked.manner(self._lm)
        model: Any = lm.model
        inputs = torch.tensor([prompt.tokens], device=lm.device)
        strings = [string for string in asked.until if string]
        criteria = PerTextStoppingCriteria(lm.tokenizer, strings, len(prompt.tokens))
        drawing = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        devices = [lm.device] if lm.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(prompt.seeds[0])
            rows = model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=prompt.limit,
                num_return_sequences=len(prompt.seeds) if temperature else 1,
                stopping_criteria=StoppingCriteriaList([criteria]),
                pad_token_id=lm.tokenizer.pad_token_id,
                **(drawing if temperature else {"do_sample": False}),
            )[:, len(prompt.tokens) :].tolist()
        found = []
        for row in rows:
            begun = (row[: place + 1] for place in range(len(row)))
            found.append(tuple(next((text for text in begun if manner.ended(text)), row)))
            count()
        return found


def measures(found: Sequence[Sampled], seconds: float) -> dict[str, float]:
    """What progress says of sampled texts: `reward` and `right`, means over texts, and `tokens_per_second`.

    `right` is the share of texts with a reward of 1, and missing where rewards are others than 0 and 1.
    """
    rewards = [reward for sampled in found for reward in sampled.rewards]
    binary = set(rewards) <= {0.0, 1.0}
    return {
        "reward": sum(rewards) / len(rewards) if rewards else math.nan,
        "right": sum(rewards) / len(rewards) if rewards and binary else math.nan,
        "tokens_per_second": sum(sampled.tokens for sampled in found) / seconds if seconds > 0 else math.nan,
    }
