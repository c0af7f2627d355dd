"""Texts that go on from prompts, token by token, many of them beside each other.

Knows decodes and what `sequences.py` reads them with. Which token comes next, and when a text has ended, the caller
says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aft_harness.engine.sequences import Sequences, Vectors

Choose = Callable[[Tensor], Tensor]
"""Takes logits, [texts, vocabulary], and gives the next token of each text."""

Ended = Callable[[Sequence[int]], bool]
"""Takes the tokens of a text, and says whether it has ended."""

OnWritten = Callable[[int, list[int]], None]
"""Called with the index of a prompt, and the tokens of its text."""

_ANY = 10**9


def write(
    sequences: Sequences,
    prompts: Sequence[Sequence[int]],
    most_new: int,
    *,
    steering: Vectors | None = None,
    beside: int = 1,
    choose: Choose = lambda logits: logits.argmax(dim=-1),
    ended: Ended = lambda tokens: False,
    on_written: OnWritten = lambda index, tokens: None,
) -> list[list[int]]:
    """Continues prompts.

    Args:
        sequences: Reads tokens.
        prompts: Token ids, none empty.
        most_new: Tokens of a text at most.
        steering: What is added to the model's layers.
        beside: Texts that are written beside each other, at most.
        choose: Chooses the next tokens.
        ended: Tells whether a text has ended; its last token is part of it.
        on_written: Called with each text as soon as it is written.

    Returns:
        The tokens of each text.
    """
    texts: list[list[int]] = [[] for _ in prompts]
    if not prompts or most_new < 1:
        return texts
    beside = min(beside, (sequences.reader.most_sequences - 1) // 2)
    plan = list(sequences.decodes(prompts, [1] * len(prompts), beside, _ANY))
    at_once = max(min(len(decode.members), beside) for decode in plan)
    sequences.begin(steering, max(decode.cells for decode in plan) + at_once * most_new)
    for decode in plan:
        last = torch.cat([part.clone() for part in sequences.read(decode)])
        for start in range(0, len(decode.members), beside):
            wave = range(start, min(start + beside, len(decode.members)))
            logits = last[[int(decode.rows[place][-1]) for place in wave]]
            active = [
                _Text(len(decode.kept) + number, len(prompts[decode.members[place]]), decode.members[place])
                for number, place in enumerate(wave)
            ]
            for text, place in zip(active, wave, strict=True):  # beside the prompts, which the next decode goes on from
                sequences.reader.share(decode.leaves[place], text.sequence, text.length)
            while active:
                active = _step(sequences, active, logits, texts, most_new, choose, ended, on_written)
                if active:
                    logits = _read(sequences, active, texts)
    return texts


@dataclass(slots=True)
class _Text:
    """A text that is being written: its sequence, how long that is, and whose prompt it has."""

    sequence: int
    length: int
    index: int


def _step(
    sequences: Sequences,
    active: Sequence[_Text],
    logits: Tensor,
    texts: Sequence[list[int]],
    most_new: int,
    choose: Choose,
    ended: Ended,
    on_written: OnWritten,
) -> list[_Text]:
    """Adds a token to each text, and gives those that go on."""
    going = []
    for text, token in zip(active, choose(logits).tolist(), strict=True):
        tokens = texts[text.index]
        tokens.append(token)
        if len(tokens) >= most_new or ended(tokens):
            sequences.reader.forget(text.sequence)
            on_written(text.index, tokens)
        else:
            going.append(text)
    return going


def _read(sequences: Sequences, active: Sequence[_Text], texts: Sequence[list[int]]) -> Tensor:
    """Reads the last token of each text."""
    size = len(active)
    logits = sequences.reader.decode(
        np.array([texts[text.index][-1] for text in active], dtype=np.int32),
        np.array([text.length for text in active], dtype=np.int32),
        np.array([text.sequence for text in active], dtype=np.int32),
        np.ones(size, dtype=np.int32),
        np.ones(size, dtype=np.bool_),
    )
    for text in active:
        text.length += 1
    return logits
