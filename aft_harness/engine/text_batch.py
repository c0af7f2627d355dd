"""A batch of texts that are being written after prompts: finished ones leave it, and waiting ones enter.

Knows token ids, a model's forward pass and a cache in which what prompts share stands once. Whether a model can be run
this way, `continuous.py` finds out. Knows nothing of texts as people read them and of boosters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aft_harness.engine.partial import computed_up_to
from aft_harness.engine.scoring import Engine
from aft_harness.engine.shared_cache import Level, Segment, SharedCache, level_of

_READ_AT_ONCE = 1024
"""Tokens of prompts, padding included, that are read in one pass."""

_MOST_TEXTS = 8
"""How many times as many texts may be written at once as rows are allowed, where they share what they begin with."""


@dataclass(frozen=True)
class Prompt:
    """What is continued.

    Attributes:
        tokens: Token ids; not empty.
        limit: Tokens of a text at most.
        seeds: One a text: of its random numbers, where tokens are drawn.
    """

    tokens: tuple[int, ...]
    limit: int
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Manner:
    """How texts are continued and when they end.

    Attributes:
        temperature: Of the distribution that tokens are drawn from; 0 takes the likeliest.
        ends: Tokens that end a text; they belong to it.
        finished: Whether texts, as the token ids that were written, are at an end for another reason.
    """

    temperature: float = 0.0
    ends: frozenset[int] = frozenset()
    finished: Callable[[Sequence[Sequence[int]]], Sequence[bool]] = lambda texts: [False] * len(texts)

    def ended(self, text: Sequence[int]) -> bool:
        """Whether a text is at an end."""
        return text[-1] in self.ends or bool(self.finished([text])[0])


@dataclass(frozen=True)
class Written:
    """A text.

    Attributes:
        tokens: Token ids, with the one that ended it.
        ended: Whether it came to an end before its limit.
    """

    tokens: tuple[int, ...]
    ended: bool


OnWritten = Callable[[int, int, Written], None]
"""Called with the index of a prompt, that of the text among the prompt's, and the text."""


@dataclass(eq=False)
class _Source:
    """A prompt whose texts are being written.

    Attributes:
        index: Of the prompt.
        prefix: The segment of the prompt's group, which others may share.
        segment: What the prompt's own texts share; None where there is one text.
        skipped: Tokens of the prompt in these segments.
        open: Texts that have not been finished.
    """

    index: int
    prefix: Segment | None
    segment: Segment | None
    skipped: int
    open: int


@dataclass(eq=False)
class _Text:
    source: _Source
    sample: int
    last: int
    position: int
    draws: Tensor | None
    tokens: list[int] = field(default_factory=list)


class TextBatch:
    """The texts of prompts that share a prefix, as far as they are being written."""

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Prompt],
        members: Sequence[int],
        prefix: int,
        manner: Manner,
        rows: int,
        budget: int,
    ) -> None:
        """Prepares; nothing is read yet.

        Args:
            engine: Has the model.
            prompts: What is continued.
            members: Those of them that this batch continues.
            prefix: Tokens that these share.
            manner: How texts are continued.
            rows: Texts that may be written at once in any case.
            budget: Tokens of keys and values to hold, which allows more texts where they share much.
        """
        self._engine, self._prompts, self._manner, self._prefix = engine, prompts, manner, prefix
        self._waiting: deque[tuple[int, int]] = deque(
            (index, sample) for index in members for sample in range(len(prompts[index].seeds))
        )
        self._budget = budget - prefix
        tails = [self._tail(index) for index in members]
        columns = max(tails)
        held = max(0 if len(prompts[index].seeds) == 1 else len(prompts[index].tokens) - prefix for index in members)
        most = max(len(prompts[index].seeds) for index in members)
        # A prompt of several texts costs what they share, and a tail for each.
        each = columns + held / most
        fitting = max(rows, min(int(self._budget / each), rows * _MOST_TEXTS))
        self._texts = max(1, min(fitting, len(self._waiting)))
        self.cache = SharedCache(self._texts, columns, engine.forward_pass.dtype)
        self._active: list[_Text] = []
        self._sources: dict[int, _Source] = {}
        self._common: Segment | None = None
        self.finished: dict[tuple[int, int], Written] = {}

    def _tail(self, index: int) -> int:
        """Columns that a text of a prompt needs for itself."""
        prompt = self._prompts[index]
        return prompt.limit + (1 if len(prompt.seeds) > 1 else len(prompt.tokens) - self._prefix)

    def run(self, on_written: OnWritten, on_logits: Callable[[Tensor], object] = lambda logits: None) -> None:
        """Writes all texts."""
        changed = True
        levels: list[Level | None] = [None, None]
        if self._prefix:
            tokens = self._prompts[self._waiting[0][0]].tokens[: self._prefix]
            self._common = self._read([tokens], ())[0]
        while self._waiting or self._active:
            free = self._texts - len(self._active)
            if self._waiting and (not self._active or free >= max(1, self._texts // 8)):
                self._admit(free)
                changed = True
            if changed:
                dtype = self._engine.forward_pass.dtype
                chains = [
                    [text.source.prefix for text in self._active],
                    [text.source.segment for text in self._active],
                ]
                levels = [level_of(chain, dtype, level) for chain, level in zip(chains, levels, strict=True)]
            self.cache.write([level for level in levels if level is not None], self._engine.device)
            logits = self._step()
            on_logits(logits)
            self.cache.written()
            changed = self._extend(self._chosen(logits), on_written)

    def _step(self) -> Tensor:
        """One pass: logits [texts, vocabulary]."""
        device = self._engine.device
        tokens = torch.tensor([[text.last] for text in self._active], device=device)
        positions = torch.tensor([[text.position] for text in self._active], device=device)
        model: Any = self._engine.model
        logits: Tensor = model(
            input_ids=tokens, position_ids=positions, past_key_values=self.cache, use_cache=True
        ).logits
        return logits[:, -1]

    def _chosen(self, logits: Tensor) -> list[int]:
        """The next token of each text."""
        if not self._manner.temperature:
            return [int(token) for token in logits.argmax(-1).tolist()]
        draws = torch.stack([text.draws[len(text.tokens)] for text in self._active if text.draws is not None])
        return [int(token) for token in drawn(logits, self._manner.temperature, draws).tolist()]

    def _extend(self, tokens: Sequence[int], on_written: OnWritten) -> bool:
        """Gives each text its next token; returns whether some are finished and have left."""
        for text, token in zip(self._active, tokens, strict=True):
            text.tokens.append(token)
            text.last, text.position = token, text.position + 1
        stopped = self._manner.finished([text.tokens for text in self._active])
        left = False
        for place in reversed(range(len(self._active))):
            text = self._active[place]
            ended = bool(stopped[place]) or text.last in self._manner.ends
            source = text.source
            if ended or len(text.tokens) >= self._prompts[source.index].limit:
                left = True
                written = Written(tuple(text.tokens), ended)
                self.finished[source.index, text.sample] = written
                on_written(source.index, text.sample, written)
                self.cache.leave(place)
                self._active[place] = self._active[-1]
                self._active.pop()
                source.open -= 1
                if not source.open:
                    del self._sources[source.index]
        return left

    def _admit(self, free: int) -> None:
        """Lets waiting texts in; reads the prompts that are new."""
        entering = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
        new = [index for index in dict.fromkeys(index for index, _ in entering) if index not in self._sources]
        chain = (self._common,) if self._common is not None else ()
        read: dict[int, Segment] = {}
        start = 0
        while start < len(new):
            end = start + 1
            widest = len(self._prompts[new[start]].tokens) - self._prefix
            while end < len(new):
                widest = max(widest, len(self._prompts[new[end]].tokens) - self._prefix)
                if widest * (end + 1 - start) > _READ_AT_ONCE:
                    break
                end += 1
            part, start = new[start:end], end
            # The last token of a prompt is the first that a text is written with.
            rest = [self._prompts[index].tokens[self._prefix : -1] for index in part]
            segments = self._read(rest, chain)
            for index, segment in zip(part, segments, strict=True):
                texts = len(self._prompts[index].seeds)
                shared = segment if texts > 1 and segment.length else None
                self._sources[index] = _Source(index, self._common, shared, self._prefix + segment.length, texts)
                if shared is None:
                    read[index] = segment
        for index, sample in entering:
            self._enter(index, sample, read.get(index))

    def _enter(self, index: int, sample: int, segment: Segment | None) -> None:
        prompt = self._prompts[index]
        draws = None
        if self._manner.temperature:
            draws = torch.rand(prompt.limit, generator=torch.Generator().manual_seed(prompt.seeds[sample]))
        source, position = self._sources[index], len(prompt.tokens) - 1
        self._active.append(_Text(source, sample, prompt.tokens[-1], position, draws))
        self.cache.enter(segment)

    def _read(self, sequences: Sequence[Sequence[int]], chain: Sequence[Segment]) -> list[Segment]:
        """Reads sequences after a chain of segments, in one pass; the head does not run."""
        widest = max(map(len, sequences))
        if not widest:
            return [Segment(0) for _ in sequences]
        engine, before = self._engine, sum(segment.length for segment in chain)
        tokens = torch.tensor([[*sequence, *[0] * (widest - len(sequence))] for sequence in sequences])
        positions = torch.arange(before, before + widest).expand(len(sequences), widest)
        model: Any = engine.model
        into = self.cache.read(chain)
        computed_up_to(
            engine.layers,
            len(engine.layers) - 1,
            lambda: model(
                input_ids=tokens.to(engine.device),
                position_ids=positions.to(engine.device),
                past_key_values=self.cache,
                use_cache=True,
            ),
        )
        return [
            Segment(
                len(sequence),
                [keys[row, :, : len(sequence)] for keys in into.keys],
                [values[row, :, : len(sequence)] for values in into.values],
            )
            for row, sequence in enumerate(sequences)
        ]


def drawn(logits: Tensor, temperature: float, draws: Tensor) -> Tensor:
    """Tokens that are drawn from the softmax of logits, one a row, int64 [rows].

    Args:
        logits: [rows, vocabulary].
        temperature: By which logits are divided.
        draws: A uniform random number a row, from 0 to 1.
    """
    sums = (logits.float() / temperature).softmax(-1).cumsum(-1)
    wanted = draws.to(sums.device, sums.dtype).unsqueeze(1) * sums[:, -1:]
    return torch.searchsorted(sums, wanted, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)
