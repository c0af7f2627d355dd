"""A stand-in for llama.cpp: a model whose logits are a function of all tokens before, and a memory with its rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

VOCABULARY = 11


def logits_after(history: Sequence[int], shift: float = 0.0) -> Tensor:
    """What the model says after some tokens, [vocabulary]."""
    seed = 7
    for token in history:
        seed = (seed * 31 + token + 1) % (2**31)
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) + shift * torch.arange(VOCABULARY)


class FakeReader:
    """Reads tokens as llama.cpp does, and complains where that would.

    Attributes:
        read: How many tokens were read.
        blind: A fault: siblings see each other.
        deaf: A fault: vectors are left out.
    """

    vocabulary_size = VOCABULARY

    def __init__(self, most_tokens: int = 16, most_outputs: int = 5, most_sequences: int = 8) -> None:
        self.most_tokens, self.most_outputs, self.most_sequences = most_tokens, most_outputs, most_sequences
        self.sequences: dict[int, list[int]] = {}
        self.cells = self.read = 0
        self.shift = 0.0
        self.blind = self.deaf = self.fickle = False
        self.log: list[int] = []  # all tokens since everything was forgotten

    def reserve(self, cells: int) -> None:
        if cells > self.cells:
            self.cells, self.sequences = cells, {}

    def steer(self, vectors: Mapping[int, Tensor] | None) -> None:
        self.shift = float(sum(vector.sum() for vector in vectors.values())) if vectors and not self.deaf else 0.0
        self.sequences = {}

    def forget_all(self) -> None:
        self.sequences, self.log = {}, []

    def forget(self, sequence: int, start: int = 0) -> bool:
        self.sequences[sequence] = self.sequences.get(sequence, [])[:start]
        return True

    def share(self, source: int, target: int, length: int) -> None:
        assert len(self.sequences[source]) >= length and not self.sequences.get(target)
        self.sequences[target] = self.sequences[source][:length]

    def decode(self, tokens: Any, positions: Any, first: Any, count: Any, wanted: Any) -> Tensor:
        assert 0 < len(tokens) <= self.most_tokens and int(wanted.sum()) <= self.most_outputs
        self.read += len(tokens)
        rows = []
        for token, position, begin, many, asked in zip(tokens, positions, first, count, wanted, strict=True):
            owners = range(int(begin), int(begin + many))
            assert many > 0 and owners[-1] < self.most_sequences
            histories = [self.sequences.setdefault(owner, []) for owner in owners]
            assert all(history == histories[0] and len(history) == position for history in histories)
            for history in histories:
                history.append(int(token))
            self.log.append(int(token))
            seen = self.log if self.blind else histories[0]
            noise = float(len(tokens)) if self.fickle else 0.0
            if asked:
                rows.append(logits_after(seen, self.shift + noise))
        held = {tuple(history[: place + 1]) for history in self.sequences.values() for place in range(len(history))}
        assert len(held) <= self.cells
        return torch.stack(rows) if rows else torch.empty(0, VOCABULARY)
