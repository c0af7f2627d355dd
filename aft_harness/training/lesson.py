"""The objective of training on a fixed set of examples, packed, and with the frozen lower layers run once.

Knows examples and the scoring engine. Knows nothing of optimisers, boosters or provenance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

from aft_harness.engine import packing
from aft_harness.engine.packing import Batch, Row
from aft_harness.engine.scoring import Engine, Request
from aft_harness.errors import TrainingError
from aft_harness.harness.examples import Example, TaskExamples, graded, ranked
from aft_harness.training.hidden_states import StateStore
from aft_harness.training.recipe import ChoiceNorm, Objective, objective_of

TOKENS_PER_PASS = 4096
"""Bound of one forward and backward pass in tokens; a larger batch accumulates gradients over several."""

ROW_WIDTH = 256
"""Columns that examples of one batch are joined to; wider rows waste attention, narrower ones waste padding."""

MOST_PADDING = {"cpu": 64, "accelerator": 4096}
"""Padding columns that cost about what another pass does: it starts thousands of operations on a few tokens."""


MEASURED = 64
"""Examples of a task that its temperature is measured on."""

SMALLEST_TEMPERATURE = 1e-3
"""Nats: choices that are all alike have no margin to divide by."""


@dataclass(frozen=True)
class Score:
    """How the model does on a set of examples.

    Attributes:
        loss: Weighted mean of the objective.
        accuracy: Fraction of multiple-choice examples whose best choice is right; None without such examples.
        n: Examples.
    """

    loss: float
    accuracy: float | None
    n: int

    @property
    def rank(self) -> float:
        """Orders variants, better ones first: by loss; one that diverged comes last.

        Not by accuracy: on a hundred documents it is off by five points, while the losses of neighbouring layers or
        strengths, of the same documents, differ smoothly.
        """
        return math.inf if math.isnan(self.loss) else self.loss


class Lesson:
    """The objective on a fixed set of examples, under whatever steering is in force.

    Nothing below the lowest trained layer depends on the booster: its output is computed once, by `prepare`, and every
    later pass starts there.

    Attributes:
        temperatures: Of the softmax over choices, by task.
    """

    def __init__(
        self,
        engine: Engine,
        tasks: Sequence[TaskExamples],
        lowest: int,
        store: StateStore,
        *,
        objective: Objective | None = None,
        choice_norm: ChoiceNorm = "none",
        temperature: float | None = 1.0,
    ) -> None:
        """Settles the objective of each task and lays the examples out.

        Args:
            engine: Runs the model.
            tasks: All examples that will be asked for.
            lowest: The lowest trained layer.
            store: Where its output is kept.
            objective: None is what `objective_of` says.
            choice_norm: What a choice's loglikelihood is divided by before the softmax over choices; `characters` is
                what lm-eval's `acc_norm` ranks by.
            temperature: And after that; None measures each task's own, see `typical_margin`.

        Raises:
            TrainingError: An objective on choices is asked for, and no task has any.
        """
        self._engine, self._lowest, self._store = engine, lowest, store
        self._choice_norm = choice_norm
        if objective in ("choice", "both") and not any(task.kind == "choice" for task in tasks):
            names = " and ".join(task.task for task in tasks)
            raise TrainingError(f"--objective {objective}: no choices in {names}; use --objective answer")
        self._by_task = {task.task: objective_of(task.kind, objective) for task in tasks}
        self.temperatures = {task.task: temperature or 1.0 for task in tasks}
        examples = [example for task in tasks for example in (*task.development, *task.train)]
        self._requests = [request for example in examples for request in self._wanted(example)]
        self._places: dict[int, range] = {}
        start = 0
        for example in examples:
            self._places[id(example)] = range(start, start + len(self._wanted(example)))
            start = self._places[id(example)].stop
        self._examples = examples
        self._rows: list[Row] = []
        self._rows_of: dict[int, range] = {}
        self._width = max(ROW_WIDTH, *(len(request.inputs) for request in self._requests))
        self._lay()
        # Packed rows are used only where they give what plain rows give: tried on the deepest and widest there will be.
        largest = sorted(range(len(self._rows)), key=lambda index: -len(self._rows[index]))
        with torch.no_grad():
            for batch, _ in self._batches(largest[:8]):
                if self._engine.packed and not self._engine.agrees(batch, self._requests):
                    self._lay()
                    break
        if temperature is None:
            for task in tasks:
                if self._by_task[task.task] != "answer":
                    some = (task.train or task.development)[:MEASURED]
                    self.temperatures[task.task] = self.typical_margin(some)

    def typical_margin(self, examples: Sequence[Example]) -> float:
        """Median distance, in nats, between the best right and the best wrong choice, under whatever is in force.

        As a temperature it makes the objective independent of how long choices are. Sums over many tokens lie far
        apart: at temperature 1 the softmax over them is all but certain, and the loss is mostly that of the few
        questions which are hopelessly wrong.

        Args:
            examples: Of one task, with choices.
        """
        margins = []
        with torch.no_grad():
            for chunk in self.chunks(examples):
                for example, part in zip(chunk, self._loglikelihoods(chunk), strict=True):
                    scores = ranked(example, part, self._choice_norm)
                    right = torch.zeros(len(part), dtype=torch.bool, device=part.device)
                    right[list(example.gold)] = True
                    if not right.all():
                        margins.append(abs(float(scores[right].max() - scores[~right].max())))
        return max(median(margins), SMALLEST_TEMPERATURE) if margins else 1.0

    def prepare(self, on_prepared: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Computes and stores the output of the lowest trained layer for every example.

        A model that cannot be resumed there (see `Engine.resumes`) runs in full at each pass instead.
        """
        if not self._engine.resumes(packing.batches([min(self._rows, key=len)], 1)[0], self._lowest):
            return
        total = len(self._examples)
        done = 0
        for chunk in self.chunks(self._examples):
            rows = [index for example in chunk for index in self._rows_of[id(example)]]
            states: dict[int, Tensor] = {}
            for batch, parts in self._batches(rows):
                hidden = self._engine.hidden(batch, self._lowest)
                for place, indices in enumerate(parts):
                    sizes = [len(self._rows[index]) for index in indices]
                    split = hidden[place, : sum(sizes)].split(sizes)
                    states.update(zip(indices, split, strict=True))
            for index in rows:  # rows are numbered in the order of the examples, and so are the states
                self._store.append(states[index])
            done += len(chunk)
            on_prepared(done, total)

    def _loglikelihoods(self, examples: Sequence[Example]) -> list[Tensor]:
        """Of the requests of each example that its objective wants, [requests]."""
        rows = [index for example in examples for index in self._rows_of[id(example)]]
        found: dict[int, Tensor] = {}
        for batch, parts in self._batches(rows):
            with self._resumed(batch, parts):
                scores = self._engine.score(batch, self._requests, self._softmax_dtype)
            found.update(zip(scores.members, scores.loglikelihoods.unbind(), strict=True))
        return [torch.stack([found[place] for place in self._places[id(example)]]) for example in examples]

    def losses(self, examples: Sequence[Example]) -> tuple[Tensor, list[bool | None]]:
        """Loss of each example, [n], and whether its best choice is right where all choices were scored."""
        losses: list[Tensor] = []
        right: list[bool | None] = []
        for example, part in zip(examples, self._loglikelihoods(examples), strict=True):
            objective, gold = self._by_task[example.task], example.gold[0]
            answer = -part[gold if len(part) > 1 else 0] / len(example.requests[gold].continuation)
            if objective == "answer":
                losses.append(answer)
                right.append(None)
                continue
            loss, best_is_right = graded(example, part / self.temperatures[example.task], self._choice_norm)
            losses.append(loss + answer if objective == "both" else loss)
            right.append(best_is_right)
        return torch.stack(losses), right

    def score(self, examples: Sequence[Example]) -> Score:
        """Mean loss and accuracy, without gradient."""
        total = weight = 0.0
        right: list[bool] = []
        with torch.no_grad():
            for chunk in self.chunks(examples):
                losses, outcomes = self.losses(chunk)
                weights = torch.tensor([example.weight for example in chunk], device=losses.device)
                total += float((losses * weights).sum())
                weight += float(weights.sum())
                right += [outcome for outcome in outcomes if outcome is not None]
        return Score(total / weight, sum(right) / len(right) if right else None, len(examples))

    def residual(self, layers: Sequence[int], examples: Sequence[Example]) -> dict[int, Tensor]:
        """Outputs of some layers on some examples, by layer, [tokens, hidden], under whatever steering is in force.

        Args:
            layers: None of them below the lowest trained one.
            examples: What to run.
        """
        found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        rows = [index for example in examples for index in self._rows_of[id(example)]]
        for batch, parts in self._batches(rows):
            with self._resumed(batch, parts):
                outputs = self._engine.outputs(batch, layers)
            for layer, hidden in outputs.items():
                found[layer] += [own[: len(row)] for own, row in zip(hidden, batch.rows, strict=True)]
        return {layer: torch.cat(parts) for layer, parts in found.items()}

    def chunks(self, examples: Sequence[Example]) -> Iterator[list[Example]]:
        """Consecutive examples whose rows fit one pass."""
        chunk: list[Example] = []
        size = 0
        for example in examples:
            own = sum(len(self._rows[index]) for index in self._rows_of[id(example)])
            if chunk and size + own > TOKENS_PER_PASS:
                yield chunk
                chunk, size = [], 0
            chunk.append(example)
            size += own
        if chunk:
            yield chunk

    def _lay(self) -> None:
        """Lays each example in rows of its own, one trie where packed rows are right."""
        self._rows.clear()
        for example in self._examples:
            places = self._places[id(example)]
            sequences = [self._requests[place].inputs for place in places]
            tails = [len(self._requests[place].continuation) for place in places]
            width = sum(map(len, sequences)) if self._engine.packed else 1
            own = packing.pack(sequences, tails, width)
            start = len(self._rows)
            self._rows += [replace(row, members=tuple(places[member] for member in row.members)) for row in own]
            self._rows_of[id(example)] = range(start, len(self._rows))

    def _batches(self, rows: Sequence[int]) -> Iterator[tuple[Batch, list[tuple[int, ...]]]]:
        """Batches over some rows, each with the indices of the rows that its rows are made of."""
        width = self._width if self._engine.packed else 1
        groups = packing.joined([self._rows[index] for index in rows], width)
        parts = {id(row): tuple(rows[place] for place in places) for row, places in groups}
        most = MOST_PADDING["cpu" if self._engine.device.type == "cpu" else "accelerator"]
        for batch in packing.batches([row for row, _ in groups], TOKENS_PER_PASS, most):
            yield batch, [parts[id(row)] for row in batch.rows]

    def _resumed(self, batch: Batch, parts: Sequence[tuple[int, ...]]) -> AbstractContextManager[None]:
        if not len(self._store):
            return nullcontext()
        first = self._store[parts[0][0]]
        hidden = first.new_zeros(*batch.input_ids.shape, first.shape[-1])
        for place, indices in enumerate(parts):
            states = torch.cat([self._store[index] for index in indices])
            hidden[place, : len(states)] = states
        return self._engine.resumed(self._lowest, hidden)

    @property
    def _softmax_dtype(self) -> torch.dtype:
        return torch.promote_types(self._engine.dtype, torch.float32)

    def _wanted(self, example: Example) -> Sequence[Request]:
        answer_only = self._by_task[example.task] == "answer"
        return (example.requests[example.gold[0]],) if answer_only else example.requests
