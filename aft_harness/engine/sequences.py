"""Scoring with an engine that keeps what it read, several sequences beside each other, such as llama.cpp.

Knows requests, decodes and vectors by layer. What reads the tokens is a `Reader`. Shared prefixes are tried on the
actual workload: a model with which they give something else than one sequence at a time gets its requests one by one
from then on.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aft_harness.engine.decoding import Decode, decodes
from aft_harness.engine.predictions import normalisers
from aft_harness.engine.scoring import OnScored, Request
from aft_harness.errors import ModelError

logger = logging.getLogger(__name__)

Vectors = Mapping[int, Tensor]
"""What is added to the output of layers, [hidden] by layer; the strength is in it."""

TOLERANCE = 0.01
"""Largest mean |difference| of a token's loglikelihood at which shared prefixes count as right; a wrong mask is off by
nats."""
COARSE_TOLERANCE = 0.5
"""The same for weights that are not float32: activations are rounded, to 8 bits for quantised ones, which alone makes
0.1 of it in a small model of 4 bits."""

_LOOKED_AT = 100
"""Decodes of which one is tried."""
_TRIED = 4
"""Requests of a decode that are tried."""

_AT_A_TIME = 16
"""Decodes that run under one steering before the next one's turn."""


class Reader(Protocol):
    """What reads tokens; see `llama.Llama`, of which this is a part."""

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens."""

    @property
    def most_tokens(self) -> int:
        """Tokens of one decode."""

    @property
    def most_outputs(self) -> int:
        """Positions of one decode whose logits are held at a time."""

    @property
    def most_sequences(self) -> int:
        """Sequences beside each other."""

    def reserve(self, cells: int) -> None:
        """Makes room for so many positions."""

    def steer(self, vectors: Vectors | None) -> None:
        """Sets what is added to the outputs of layers, and forgets what was read."""

    def forget_all(self) -> None:
        """Forgets what was read."""

    def forget(self, sequence: int, start: int = 0) -> bool:
        """Forgets the positions of a sequence from `start` on; False where this kind of model cannot."""

    def share(self, source: int, target: int, length: int) -> None:
        """Lets a sequence begin with the first positions of another."""

    def decode(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        first: NDArray[np.int32],
        count: NDArray[np.int32],
        wanted: NDArray[np.bool_],
    ) -> Tensor:
        """Reads tokens and gives the logits of the wanted positions, valid until the next call."""


class Sequences:
    """Reads decodes one after the other, each from what the one before left, and scores requests with them.

    Attributes:
        reader: Reads tokens.
        sharing: Whether prefixes are shared, as long as nothing speaks against it.
    """

    def __init__(self, reader: Reader, *, sharing: bool = True, tolerance: float = TOLERANCE) -> None:
        """Nothing is read yet.

        Args:
            reader: Reads tokens.
            sharing: False takes one request at a time without trying.
            tolerance: See `TOLERANCE`.
        """
        self.reader, self.sharing, self._tolerance = reader, sharing, tolerance
        self._tried = False
        self._sequences = 0  # of the decode before

    def loglikelihoods(
        self,
        requests: Sequence[Request],
        *,
        steerings: Sequence[Vectors | None] = (None,),
        on_scored: OnScored = lambda members, results: None,
        known: Collection[int] = (),
    ) -> list[list[tuple[float, bool]]]:
        """Scores every request under every steering.

        Args:
            requests: What to score; truncated to the model's length.
            steerings: What is added to the model's layers, None for nothing.
            on_scored: Called now and then with indices of requests and their results by steering.
            known: Indices of requests that need no scores.

        Returns:
            By steering, by request: summed loglikelihood, and whether the continuation is the greedy one.
        """
        results: list[list[tuple[float, bool]]] = [[(0.0, False)] * len(requests) for _ in steerings]
        remaining = sorted(set(range(len(requests))) - set(known))
        if not remaining or not steerings:
            return results
        self._try(requests, remaining, steerings[0])
        plan = self._plan(requests, remaining)
        # Several steerings take turns, each with some decodes: what is known of a request is known of all of them.
        size = len(plan) if len(steerings) == 1 else _AT_A_TIME
        for place in range(0, len(plan), size):
            part = plan[place : place + size]
            if place:
                part = self._plan(requests, [member for decode in part for member in decode.members])
            found: list[list[tuple[float, bool]]] = []
            for steering, result in zip(steerings, results, strict=True):
                self.begin(steering, max(decode.cells for decode in part))
                found.append([])
                for decode in part:
                    pairs = self._score(decode, requests)
                    found[-1] += pairs
                    for member, pair in zip(decode.members, pairs, strict=True):
                        result[member] = pair
                    if len(steerings) == 1:
                        on_scored(decode.members, [pairs])
            if len(steerings) > 1:
                on_scored([member for decode in part for member in decode.members], found)
        return results

    def begin(self, steering: Vectors | None, cells: int) -> None:
        """Prepares to read, with nothing read yet.

        Args:
            steering: What is added to the model's layers.
            cells: Positions that are held at most.
        """
        self.reader.reserve(cells)
        self.reader.steer(steering)
        self._sequences = 0

    def read(self, decode: Decode) -> Iterator[Tensor]:
        """Reads a decode after the one before, of which it keeps what it shares.

        Yields:
            The logits of its wanted positions in order, [some, vocabulary], each part valid until the next.
        """
        self._take_over(decode)
        before = np.concatenate(([0], np.cumsum(decode.wanted)))  # wanted positions in front of each column
        start = 0
        while start < len(decode):
            end = min(start + self.reader.most_tokens, len(decode))
            end = min(end, int(np.searchsorted(before, before[start] + self.reader.most_outputs, side="right")) - 1)
            columns = slice(start, end)
            yield self.reader.decode(
                decode.tokens[columns],
                decode.positions[columns],
                decode.first[columns],
                decode.count[columns],
                decode.wanted[columns],
            )
            start = end
        self._sequences = len(decode.kept)

    def _take_over(self, decode: Decode) -> None:
        """Leaves of what was read what the next decode goes on from."""
        depth = decode.kept[0]
        if not depth:
            self.reader.forget_all()
            return
        assert self._sequences
        spare = self.reader.most_sequences - 1
        self.reader.share(self._sequences - 1, spare, depth)
        for sequence in range(self._sequences):
            self.reader.forget(sequence)
        for sequence, length in enumerate(decode.kept):
            if length:
                self.reader.share(spare, sequence, length)
        self.reader.forget(spare)

    def _plan(self, requests: Sequence[Request], indices: Sequence[int], tokens: int | None = None) -> list[Decode]:
        sequences = [requests[index].inputs for index in indices]
        tails = [len(requests[index].continuation) for index in indices]
        plan = self.decodes(sequences, tails, self.reader.most_sequences - 1, tokens or self.reader.most_tokens)
        return [replace(decode, members=tuple(indices[member] for member in decode.members)) for decode in plan]

    def decodes(
        self, sequences: Sequence[Sequence[int]], tails: Sequence[int], leaves: int, tokens: int
    ) -> Iterator[Decode]:
        """See `decoding.decodes`; without sharing each leaf is a decode of its own."""
        leaves = leaves if self.sharing else 1
        return decodes(sequences, tails, most_tokens=tokens, most_leaves=leaves, keeping=self.sharing)

    def _score(self, decode: Decode, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """Reads a decode and scores its members."""
        counts = [len(rows) for rows in decode.rows]
        rows = torch.from_numpy(np.concatenate(decode.rows))
        targets = torch.tensor([token for member in decode.members for token in requests[member].continuation])
        owners = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        sums = torch.zeros(len(counts))
        misses = torch.zeros(len(counts), dtype=torch.long)
        begin = 0
        for logits in self.read(decode):
            here = ((rows >= begin) & (rows < begin + len(logits))).nonzero().flatten()
            slots = rows[here] - begin
            begin += len(logits)
            if not len(here):
                continue
            normaliser, tops = normalisers(logits)
            chosen = logits[slots, targets[here]]
            sums.index_add_(0, owners[here], chosen - normaliser[slots])
            missed = chosen != tops[slots]
            tied = (~missed).nonzero().flatten()  # of equally likely tokens argmax takes one
            missed[tied] = logits[slots[tied]].argmax(dim=-1) != targets[here[tied]]
            misses.index_add_(0, owners[here], missed.long())
        return list(zip(map(float, sums.tolist()), (misses == 0).tolist(), strict=True))

    def _try(self, requests: Sequence[Request], indices: Sequence[int], steering: Vectors | None) -> None:
        """Compares decodes that share much with one sequence at a time, once; see the module."""
        if self._tried or not self.sharing:
            return
        whole = self._plan(requests, indices)[:_LOOKED_AT]
        widest = max(range(len(whole)), key=lambda place: len(whole[place].kept))
        # Some of it, and of the one after it: in two decodes, the second of which goes on from what the first leaves.
        tried = [*whole[widest].members[-_TRIED:], *(whole[widest + 1 :] or whole[widest:])[0].members[:_TRIED]]
        tried = list(dict.fromkeys(tried))
        if len(tried) == 1:
            return
        size = sum(len(requests[member].inputs) for member in tried)
        plan = self._plan(requests, tried, min(self.reader.most_tokens, max(1, size // len(tried) // 2)))
        self._tried = True
        wanted = list(dict.fromkeys(member for decode in plan for member in (decode.members[0], decode.members[-1])))
        try:
            self.begin(steering, max(decode.cells for decode in plan))
            shared: dict[int, tuple[float, bool]] = {}
            for decode in plan:
                shared |= dict(zip(decode.members, self._score(decode, requests), strict=True))
            self.sharing = False
            alone = self._plan(requests, wanted)
            self.begin(steering, max(decode.cells for decode in alone))
            apart, length = 0.0, 0
            for decode in alone:
                for member, (score, _) in zip(decode.members, self._score(decode, requests), strict=True):
                    apart += abs(score - shared[member][0])
                    length += len(requests[member].continuation)
            if not apart <= self._tolerance * length:  # what is not a number must fail, too
                logger.info("this model does not share prefixes; reading one request at a time")
                return
            self.sharing = True
        except ModelError as error:
            self.sharing = False
            logger.info("this model does not share prefixes (%s); reading one request at a time", str(error))
