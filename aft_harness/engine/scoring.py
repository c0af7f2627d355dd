"""Loglikelihoods of continuations: one engine for evaluation, training and sweeps.

Knows requests as token ids and how a batch of them is scored under several steerings. Lays them out with `trie.py` and
`rows.py`, runs the model with `forward.py`, and asks `probe.py` what the model is able to do. Knows nothing of tasks,
texts or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from aft_harness.engine.forward import ForwardPass
from aft_harness.engine.part import WHOLE, Part
from aft_harness.engine.predictions import Predictions, normalisers
from aft_harness.engine.probe import Deviation, Probe, revealing
from aft_harness.engine.rows import Batch, batches
from aft_harness.engine.scores import Scores, ScoreTable
from aft_harness.engine.steering import Steering
from aft_harness.engine.trie import Trie

OnScored = Callable[[Sequence[int], list[list[tuple[float, bool]]]], None]
"""Called after each batch with the indices of its requests, and their results by steering."""


@dataclass(frozen=True, slots=True)
class Request:
    """A continuation to score after a context, as token ids; both are non-empty.

    Attributes:
        context: Tokens before the continuation.
        continuation: Tokens whose loglikelihood is wanted.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        """What the model reads: everything but the last token, which is only predicted."""
        return (self.context + self.continuation)[:-1]

    def truncated(self, max_length: int) -> Request:
        """The request cut from the left to what fits a model of `max_length` positions, as lm-eval does."""
        surplus = len(self.context) + len(self.continuation) - (max_length + 1)
        return self if surplus <= 0 else Request(self.context[surplus:], self.continuation)


class Engine:
    """Scores requests with one model.

    Attributes:
        forward_pass: Runs the model.
        probe: What the model has been found able to do.
    """

    def __init__(self, model: nn.Module, layers: nn.ModuleList, device: torch.device, *, packed: bool = True) -> None:
        """Prepares to score; nothing runs yet.

        Args:
            model: A causal language model.
            layers: Its decoder layers.
            device: Where its input goes.
            packed: False takes plain rows without trying.
        """
        self.forward_pass = ForwardPass(model, layers, device, packed=packed)
        self.probe = Probe(self.forward_pass)

    def plain(self) -> Engine:
        """An engine for the same model that takes plain rows without trying others."""
        return Engine(self.model, self.layers, self.device, packed=False)

    @property
    def model(self) -> nn.Module:
        """The model."""
        return self.forward_pass.model

    @property
    def layers(self) -> nn.ModuleList:
        """The model's decoder layers."""
        return self.forward_pass.layers

    @property
    def device(self) -> torch.device:
        """Where the model's input goes."""
        return self.forward_pass.device

    @property
    def packed(self) -> bool:
        """Whether rows are packed, as long as nothing speaks against it."""
        return self.forward_pass.packed

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the activations: autocast's where it is on, the model's otherwise."""
        return self.forward_pass.dtype

    def loglikelihoods(
        self,
        requests: Sequence[Request],
        max_tokens: int,
        *,
        steerings: Sequence[Steering | None] = (None,),
        softmax_dtype: torch.dtype | None = torch.float32,
        on_scored: OnScored = lambda members, results: None,
        known: Collection[int] = (),
        part: Part = WHOLE,
    ) -> list[list[tuple[float, bool]]]:
        """Scores every request under every steering.

        Args:
            requests: What to score; truncated to the model's length.
            max_tokens: Bound of one forward pass in tokens, padding included; a longer request is a pass of its own.
            steerings: How the model is steered, None for not at all; the layers below all of them run once.
            softmax_dtype: As in lm-eval: None means the dtype of the logits.
            on_scored: Called after each batch with the indices of its requests and their results by steering.
            known: Indices of requests that need no scores. They are laid out all the same, and batches of nothing else
                are left out: what goes on after a break gives to the last bit what would have come without it.
            part: Passes of others are left out in the same way.

        Returns:
            By steering, by request: summed loglikelihood, and whether the continuation is the greedy one.
        """
        self.compare_lengths(requests)
        known = set(known)
        results: list[dict[int, tuple[float, bool]]] = [{} for _ in steerings]
        remaining = set(range(len(requests)))
        with torch.no_grad():
            while True:
                for number, batch in enumerate(self._batches(requests, sorted(remaining), max_tokens)):
                    members, mine = _members(batch), part.takes(number)
                    if known.issuperset(members):
                        continue
                    if not mine and (not self.packed or self.agrees(batch, requests)):
                        remaining.difference_update(members)
                        continue
                    scored = self._checked(batch, requests, steerings, softmax_dtype) if mine else None
                    if scored is None:
                        break  # what remains is laid out again, in plain rows
                    members = scored[0].members
                    found = [_pairs(scores) for scores in scored]
                    for result, pairs in zip(results, found, strict=True):
                        result.update(zip(members, pairs, strict=True))
                    remaining.difference_update(members)
                    on_scored(members, found)
                else:
                    return [[result.get(place, (0.0, False)) for place in range(len(requests))] for result in results]

    def compare_lengths(self, requests: Sequence[Request]) -> None:
        """Tries the longest of some requests beside the shortest, see `Probe.compare_lengths`."""
        if len(requests) > 1:
            sequences = [request.inputs for request in (max(requests, key=_length), min(requests, key=_length))]
            self.probe.compare_lengths(*sequences)

    def _batches(self, requests: Sequence[Request], indices: Sequence[int], max_tokens: int) -> list[Batch]:
        sequences = [requests[index].inputs for index in indices]
        tails = [len(requests[index].continuation) for index in indices]
        trie = Trie(sequences, tails)
        width = 1
        if self.packed:
            width = trie.choose_width(max_tokens, attention_cost=self.forward_pass.attention_cost)
        rows = [replace(row, members=tuple(indices[member] for member in row.members)) for row in trie.rows(width)]
        return batches(rows, 1 if self.probe.alone else max_tokens)

    def _score_steered(
        self,
        batch: Batch,
        requests: Sequence[Request],
        steerings: Sequence[Steering | None],
        softmax_dtype: torch.dtype | None,
    ) -> list[Scores]:
        """Scores a batch under each steering.

        What two steerings share runs once: they take turns in the order of their lowest layers, and each starts at the
        unsteered output of that layer, which is computed from the one before.
        """
        lowest = [steering.layers[0] if steering and steering.layers else None for steering in steerings]
        starts = sorted({layer for layer in lowest if layer is not None}) if len(steerings) > 1 else []
        starts = [layer for layer in starts if self.resumes(batch, layer)]
        order = sorted(range(len(steerings)), key=lambda index: math.inf if (low := lowest[index]) is None else low)
        table = ScoreTable(len(steerings))
        with ExitStack() as shared:
            for index in order:
                low = lowest[index]
                while starts and (low is None or starts[0] <= low):
                    start = starts.pop(0)
                    hidden = self.hidden(batch, start)
                    shared.close()  # one hidden state at a time
                    shared.enter_context(self.resumed(start, hidden))
                with steerings[index] or nullcontext():
                    table.put(index, self.score(batch, requests, softmax_dtype))
        return table.rows()

    def score(self, batch: Batch, requests: Sequence[Request], softmax_dtype: torch.dtype | None) -> Scores:
        """One forward pass over a batch, under whatever steering is in force.

        The head runs on the positions that predict a continuation's token and nowhere else.

        Args:
            batch: Rows whose members are indices of `requests`.
            requests: What was laid out.
            softmax_dtype: Dtype of the softmax and of the sums; None means that of the logits.
        """
        predicted = Predictions.of(batch, requests)
        logits, slots = self._logits(batch, predicted)
        device = logits.device
        slots, targets, owners = slots.to(device), predicted.targets.to(device), predicted.owners.to(device)
        normaliser, tops = normalisers(logits)
        chosen = logits[slots, targets]
        terms = chosen.to(normaliser.dtype) - normaliser[slots]
        # The roundings of lm-eval: each term to the dtype of the softmax, then their sum, which torch forms in float32.
        rounded = softmax_dtype or logits.dtype
        terms = terms.to(rounded).to(terms.dtype)
        count = len(predicted.members)
        sums = torch.zeros(count, dtype=terms.dtype, device=device).index_add(0, owners, terms)
        misses = torch.zeros(count, dtype=torch.long, device=device)
        misses.index_add_(0, owners, (chosen != tops[slots]).long())
        # Of equally likely tokens argmax takes one: a slow look, needed only where nothing else was missed.
        tied = (misses == 0)[owners]
        misses.index_add_(0, owners[tied], (logits[slots[tied]].argmax(dim=-1) != targets[tied]).long())
        return Scores(predicted.members, sums.to(rounded), misses == 0)

    def predictions(self, batch: Batch, requests: Sequence[Request]) -> dict[int, Tensor]:
        """Logits that predict each continuation's tokens, [tokens, vocabulary], by request; differentiable."""
        predicted = Predictions.of(batch, requests)
        logits, slots = self._logits(batch, predicted)
        sizes = [len(requests[member].continuation) for member in predicted.members]
        ordered = bool((slots.diff() == 1).all()) and len(slots) == len(logits)  # else rows are copied
        logits = logits if ordered else logits.index_select(0, slots.to(logits.device))
        return dict(zip(predicted.members, logits.split(sizes), strict=True))

    def _logits(self, batch: Batch, predicted: Predictions) -> tuple[Tensor, Tensor]:
        """Logits at the positions that predict something, [n, vocabulary], and which of them predicts each token."""
        keep, slots = predicted.positions(batch)
        return self.forward_pass.logits(batch, keep, self.probe.head), slots

    def hidden(self, batch: Batch, layer: int) -> Tensor:
        """Unsteered output of a layer, [rows, width, hidden]; the layers above and the head do not run."""
        return self.forward_pass.hidden(batch, layer)

    def outputs(self, batch: Batch, wanted: Sequence[int]) -> dict[int, Tensor]:
        """Outputs of several layers, [rows, width, hidden], of one pass that ends at the highest of them."""
        return self.forward_pass.outputs(batch, wanted)

    def resumed(self, layer: int, hidden: Tensor) -> AbstractContextManager[None]:
        """In this context, passes start at the output of `layer`, which is `hidden` as the method `hidden` gave it."""
        return self.forward_pass.resumed(layer, hidden)

    def resumes(self, batch: Batch, layer: int) -> bool:
        """Whether passes resumed at `layer` give what full ones give; checked once a layer, on a row of `batch`."""
        return self.probe.resumes(batch, layer)

    @contextmanager
    def differentiated(self) -> Iterator[None]:
        """In this block attention is the kind whose backward pass is quick, see `ForwardPass.differentiated`."""
        with self.forward_pass.differentiated() as changed, self.probe.forgotten() if changed else nullcontext():
            yield

    def agrees(self, batch: Batch, requests: Sequence[Request]) -> bool:
        """Whether packed rows as wide and deep as these give what plain rows give; if not, rows are plain from now on.

        Runs the rows that tell most, and two requests in plain rows, when the batch is wider or deeper than all before.
        """
        if not self.packed or self.probe.covers(batch):
            return self.packed
        with torch.no_grad():
            parts = _trial_batches(batch)
            return all(self._checked(part, requests, (None,), torch.float32) is not None for part in parts)

    def _checked(
        self,
        batch: Batch,
        requests: Sequence[Request],
        steerings: Sequence[Steering | None],
        softmax_dtype: torch.dtype | None,
    ) -> list[Scores] | None:
        """Scores a batch under each steering, or None when packed rows turn out wrong; see `Probe.checked`."""
        score = partial(self._score_steered, batch, requests, steerings, softmax_dtype)
        # Not in the dtype that was asked for: sums that are rounded to bfloat16 have steps of half a nat at -100.
        rounded = softmax_dtype or self.dtype
        exact = torch.promote_types(rounded, torch.float32)

        def compare(scored: Sequence[Scores], members: Collection[int]) -> Iterator[Deviation]:
            parts = scored[:1]
            if exact != rounded:
                parts = [self._score_steered(part, requests, steerings[:1], exact)[0] for part in _trial_batches(batch)]
            packed = {
                member: score
                for part in parts
                for member, score in zip(part.members, part.loglikelihoods.tolist(), strict=True)
            }
            plain = self.plain()
            for member in members:
                request = requests[member]
                (((alone, _),),) = plain.loglikelihoods([request], 1, steerings=steerings[:1], softmax_dtype=exact)
                yield Deviation(abs(alone - packed[member]), len(request.continuation))

        return self.probe.checked(batch, score, compare)


def _trial_batches(batch: Batch) -> list[Batch]:
    """The rows on which a wrong mask shows, one a batch: they are the largest there are."""
    rows = {id(row): row for row, _ in revealing(batch)}
    return batches(list(rows.values()), 1)


def _members(batch: Batch) -> tuple[int, ...]:
    return tuple(member for row in batch.rows for member in row.members)


def _length(request: Request) -> int:
    return len(request.context) + len(request.continuation)


def _pairs(scores: Scores) -> list[tuple[float, bool]]:
    return list(zip(map(float, scores.loglikelihoods.tolist()), scores.greedy.tolist(), strict=True))
