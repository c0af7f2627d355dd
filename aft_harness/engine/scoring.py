"""Loglikelihoods of continuations: one engine for evaluation, training and sweeps.

Knows token ids and a causal language model's forward pass; lays requests out with `packing.py` and steers with
`steering.py`. Knows nothing of tasks, texts or files.

Whether a model can take packed rows is never taken from a list of architectures: the widest and deepest rows of the
real work are scored packed and plain, and a model that disagrees with itself is run on plain rows from then on.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from aft_harness.engine import packing
from aft_harness.engine.packing import Batch, Row
from aft_harness.engine.steering import (
    Steering,
    computed_up_to,
    hidden_size,
    last_mlp,
    narrowed,
    recorded,
    resumed_after,
    text_config,
)

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3}
"""Largest mean |difference| of token loglikelihoods at which packed and plain rows count as equal, by dtype."""
COARSE_TOLERANCE = 0.15
"""The same for half precision, where rows of another shape differ by rounding alone; a wrong mask is off by nats."""

OnScored = Callable[[Sequence[int], list[list[tuple[float, bool]]]], None]
"""Told after each batch: the indices of its requests, and their results by variant."""

# How many logits are raised to float32 at a time: a second copy of all would double the memory, and on a CPU one that
# does not fit its cache is four times slower.
_HEAD_ELEMENTS = {"cpu": 2**20, "accelerator": 2**25}
# What a model may raise when it is given a mask or positions that it has no use for.
_REFUSALS = (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError, NotImplementedError)


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


@dataclass(frozen=True, slots=True)
class Scores:
    """What a pass over one batch found.

    Attributes:
        members: Indices of the requests that were scored.
        loglikelihoods: Summed over each continuation's tokens, [len(members)]; differentiable.
        greedy: Whether every token of a continuation was the model's first choice, bool [len(members)].
    """

    members: tuple[int, ...]
    loglikelihoods: Tensor
    greedy: Tensor


class Engine:
    """Runs one model over rows of requests."""

    def __init__(self, model: nn.Module, layers: nn.ModuleList, device: torch.device, *, packed: bool = True) -> None:
        """Prepares to score; nothing runs yet.

        Args:
            model: A causal language model.
            layers: Its decoder layers.
            device: Where its input goes.
            packed: False takes plain rows without trying.
        """
        self.model, self.layers, self.device = model, layers, device
        self.packed = packed
        self._resumes: dict[int, bool] = {}
        self._output_size = 0  # of the tuple that a layer returns; 0 for a bare tensor
        self._mask_forms = list(self._possible_mask_forms())
        self._covered = _Extent()

    def plain(self) -> Engine:
        """An engine for the same model that takes plain rows without trying others."""
        return Engine(self.model, self.layers, self.device, packed=False)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the activations: autocast's where it is on, the model's otherwise."""
        if torch.is_autocast_enabled(self.device.type):
            return torch.get_autocast_dtype(self.device.type)
        return self.model.dtype  # type: ignore[return-value]

    @cached_property
    def attention_cost(self) -> float:
        """Cost of one more key column for one token, relative to what the token costs in the layers' products."""
        weights = sum(parameter.numel() for parameter in self.layers[0].parameters())
        # Two products of the width of all heads, against one with every weight.
        return 2 * hidden_size(self.model) / max(weights, 1)

    def loglikelihoods(
        self,
        requests: Sequence[Request],
        max_tokens: int,
        *,
        variants: Sequence[Steering | None] = (None,),
        softmax_dtype: torch.dtype | None = torch.float32,
        on_scored: OnScored = lambda members, results: None,
        known: Collection[int] = (),
    ) -> list[list[tuple[float, bool]]]:
        """Scores every request under every variant.

        Args:
            requests: What to score; truncated to the model's length.
            max_tokens: Bound of one forward pass in tokens, padding included; a longer request is a pass of its own.
            variants: How the model is steered; the layers below all of them run once.
            softmax_dtype: As in lm-eval: None means the dtype of the logits.
            on_scored: Called after each batch with the indices of its requests and their results by variant.
            known: Indices of requests that need no scores. They are laid out all the same, and batches of nothing else
                are left out: what goes on after a break gives to the last bit what would have come without it.

        Returns:
            By variant, by request: summed loglikelihood, and whether the continuation is the greedy one.
        """
        known = set(known)
        results: list[list[tuple[float, bool]]] = [[(0.0, False)] * len(requests) for _ in variants]
        remaining = set(range(len(requests)))
        laid = False
        with torch.no_grad():
            while not laid:
                for batch in self._lay(requests, sorted(remaining), max_tokens):
                    if known.issuperset(member for row in batch.rows for member in row.members):
                        continue
                    scored = self._checked(batch, requests, variants, softmax_dtype)
                    if scored is None:
                        break  # what remains is laid out again, in plain rows
                    members = scored[0].members
                    found = [_pairs(scores) for scores in scored]
                    for variant, pairs in enumerate(found):
                        for member, pair in zip(members, pairs, strict=True):
                            results[variant][member] = pair
                    remaining.difference_update(members)
                    on_scored(members, found)
                else:
                    laid = True
        return results

    def _lay(self, requests: Sequence[Request], indices: Sequence[int], max_tokens: int) -> list[Batch]:
        sequences = [requests[index].inputs for index in indices]
        tails = [len(requests[index].continuation) for index in indices]
        width = 1
        if self.packed:
            width = packing.choose_width(sequences, tails, max_tokens, attention_cost=self.attention_cost)
        rows = packing.pack(sequences, tails, width)
        named = [replace(row, members=tuple(indices[member] for member in row.members)) for row in rows]
        return packing.batches(named, max_tokens)

    def _score_variants(
        self,
        batch: Batch,
        requests: Sequence[Request],
        variants: Sequence[Steering | None],
        softmax_dtype: torch.dtype | None,
    ) -> list[Scores]:
        """Scores a batch under each variant.

        What two variants share runs once: variants take turns in the order of their lowest layers, and each starts at
        the unsteered output of that layer, which is computed from the one before.
        """
        lowest = [variant.layers[0] if variant and variant.layers else None for variant in variants]
        starts = sorted({layer for layer in lowest if layer is not None}) if len(variants) > 1 else []
        starts = [layer for layer in starts if self.resumes(batch, layer)]
        order = sorted(range(len(variants)), key=lambda index: math.inf if (low := lowest[index]) is None else low)
        scored: dict[int, Scores] = {}
        with ExitStack() as shared:
            for index in order:
                low = lowest[index]
                while starts and (low is None or starts[0] <= low):
                    start = starts.pop(0)
                    hidden = self.hidden(batch, start)
                    shared.close()  # one hidden state at a time
                    shared.enter_context(self.resumed(start, hidden))
                with variants[index] or nullcontext():
                    scored[index] = self.score(batch, requests, softmax_dtype)
        return [scored[index] for index in range(len(variants))]

    def score(self, batch: Batch, requests: Sequence[Request], softmax_dtype: torch.dtype | None) -> Scores:
        """One forward pass over a batch, under whatever steering is in force.

        The head runs on the positions that predict a continuation's token and nowhere else.

        Args:
            batch: Rows whose members are indices of `requests`.
            requests: What was laid out.
            softmax_dtype: Dtype of the softmax and of the sums; None means that of the logits.
        """
        wanted = _Wanted.of(batch, requests)
        keep = torch.zeros(batch.input_ids.shape, dtype=torch.bool)
        keep.view(-1)[wanted.columns] = True
        slots = (keep.view(-1).cumsum(0) - 1)[wanted.columns]
        logits = self._logits(batch, keep)
        device = logits.device
        slots, targets, owners = slots.to(device), wanted.targets.to(device), wanted.owners.to(device)
        normalisers, tops = _normalisers(logits)
        chosen = logits[slots, targets]
        terms = chosen.to(normalisers.dtype) - normalisers[slots]
        # The roundings of lm-eval: each term to the dtype of the softmax, then their sum, which torch forms in float32.
        rounded = softmax_dtype or logits.dtype
        terms = terms.to(rounded).to(terms.dtype)
        count = len(wanted.members)
        sums = torch.zeros(count, dtype=terms.dtype, device=device).index_add(0, owners, terms)
        misses = torch.zeros(count, dtype=torch.long, device=device)
        misses.index_add_(0, owners, (chosen != tops[slots]).long())
        # Of equally likely tokens argmax takes one: a slow look, needed only where nothing else was missed.
        tied = (misses == 0)[owners]
        misses.index_add_(0, owners[tied], (logits[slots[tied]].argmax(dim=-1) != targets[tied]).long())
        return Scores(wanted.members, sums.to(rounded), misses == 0)

    def hidden(self, batch: Batch, layer: int) -> Tensor:
        """Unsteered output of a layer, [rows, width, hidden]; the layers above and the head do not run."""
        with torch.no_grad():
            output = computed_up_to(self.layers, layer, lambda: self._forward(batch))
        self._output_size = len(output) if isinstance(output, tuple) else 0
        return output[0] if isinstance(output, tuple) else output

    def outputs(self, batch: Batch, wanted: Sequence[int]) -> dict[int, Tensor]:
        """Outputs of several layers, [rows, width, hidden], of one pass that ends at the highest of them."""
        top = max(wanted)
        with ExitStack() as recording:
            lower = {layer: recording.enter_context(recorded(self.layers, layer)) for layer in wanted if layer != top}
            highest = self.hidden(batch, top)
        return {layer: highest if layer == top else lower[layer][0] for layer in wanted}

    def resumed(self, layer: int, hidden: Tensor) -> AbstractContextManager[None]:
        """In this context, passes start at the output of `layer`, which is `hidden` as the method `hidden` gave it."""
        rest = (None,) * (self._output_size - 1)
        return resumed_after(self.layers, layer, (hidden, *rest) if self._output_size else hidden)

    def agrees(self, batch: Batch, requests: Sequence[Request]) -> bool:
        """Whether packed rows as wide and deep as these give what plain rows give; if not, rows are plain from now on.

        Runs the rows that tell most, and two requests in plain rows, when the batch is wider or deeper than everything
        checked so far.
        """
        if self.packed and not self._extent(batch) <= self._covered:
            telling = {id(row): row for row, _ in _telling(batch)}
            trial = packing.batches(list(telling.values()), sum(map(len, batch.rows)))
            with torch.no_grad():
                return all(self._checked(part, requests, (None,), torch.float32) is not None for part in trial)
        return self.packed

    def _checked(
        self,
        batch: Batch,
        requests: Sequence[Request],
        variants: Sequence[Steering | None],
        softmax_dtype: torch.dtype | None,
    ) -> list[Scores] | None:
        """Scores a batch; one that is laid out like none before is compared with plain rows.

        Returns:
            Scores by variant, or None when packed rows are wrong: rows are plain from then on.
        """
        extent = self._extent(batch)
        if not self.packed or extent <= self._covered:
            return self._score_variants(batch, requests, variants, softmax_dtype)
        while self._mask_forms:
            try:
                scored = self._score_variants(batch, requests, variants, softmax_dtype)
                if self._same_as_plain(batch, requests, variants[0], scored[0], softmax_dtype):
                    self._covered = self._covered | extent
                    return scored
            except torch.OutOfMemoryError:
                raise
            except _REFUSALS as error:
                logger.debug("packed rows are refused: %s", error)
            self._mask_forms.pop(0)
            self._covered = _Extent()
            self._resumes.clear()
        self.packed = False
        logger.info("%s does not take packed rows; using plain rows", type(self.model).__name__)
        return None

    def _extent(self, batch: Batch) -> _Extent:
        depth = int(batch.position_ids.max()) + 1
        return _Extent(batch.input_ids.shape[1], depth, any(map(_branches, batch.rows)))

    def _same_as_plain(
        self,
        batch: Batch,
        requests: Sequence[Request],
        variant: Steering | None,
        scores: Scores,
        softmax_dtype: torch.dtype | None,
    ) -> bool:
        packed = dict(zip(scores.members, scores.loglikelihoods.tolist(), strict=True))
        plain = self.plain()
        for member in {member for _, member in _telling(batch)}:
            request = requests[member]
            (((alone, _),),) = plain.loglikelihoods([request], 1, variants=[variant], softmax_dtype=softmax_dtype)
            if not abs(alone - packed[member]) <= self._tolerance * len(request.continuation):
                return False
        return True

    def resumes(self, batch: Batch, layer: int) -> bool:
        """Whether a run of the layers above `layer`, from its stored output, gives what a full run gives.

        Checked once a layer; a model that fails (one whose upper layers use more of the lower ones than their output)
        is run in full from then on.
        """
        if layer not in self._resumes:
            batch = packing.batches([min(batch.rows, key=len)], 1)[0]
            keep = torch.zeros(batch.input_ids.shape, dtype=torch.bool)
            keep[:, -1] = True
            keep[:, 0] = True
            with torch.no_grad():
                try:
                    full = self._logits(batch, keep)
                    with self.resumed(layer, self.hidden(batch, layer)):
                        upper = self._logits(batch, keep)
                    self._resumes[layer] = float((full - upper).abs().float().mean()) <= self._tolerance
                except torch.OutOfMemoryError:
                    raise
                except _REFUSALS as error:
                    logger.debug("resuming is refused: %s", error)
                    self._resumes[layer] = False
            if not self._resumes[layer]:
                logger.info("%s cannot be resumed at layer %d; using full passes", type(self.model).__name__, layer)
        return self._resumes[layer]

    @contextmanager
    def differentiated(self) -> Iterator[None]:
        """In this block attention is the kind whose backward pass is quick.

        The rule: on a CPU, in half precision, plain matrix products instead of torch's fused attention, whose backward
        pass is slow there (`scripts/bench.py --only training-attention-bf16` measures it); everywhere else what the
        model has.
        """
        model: Any = self.model
        fused = getattr(model.config, "_attn_implementation", None) == "sdpa"
        if not (fused and self.device.type == "cpu" and self.dtype in (torch.bfloat16, torch.float16)):
            yield
            return
        covered = self._covered
        try:
            model.set_attn_implementation("eager")
            self._covered = _Extent()  # what was checked was checked with the other kind
            yield
        finally:
            model.set_attn_implementation("sdpa")
            self._covered = covered

    @property
    def _tolerance(self) -> float:
        return TOLERANCE.get(self.dtype, COARSE_TOLERANCE)

    def _logits(self, batch: Batch, keep: Tensor) -> Tensor:
        """Logits [n, vocabulary] at the n True positions of `keep` [rows, width], row by row."""
        keep = keep.to(self.device)
        # Plain rows, which packed ones are checked against, run the last layer whole.
        mlp = last_mlp(self.layers) if self.packed else None
        with narrowed(mlp, keep) if mlp else nullcontext():
            if self._keeps_logits:
                logits: Tensor = self._forward(batch, logits_to_keep=keep).logits
            else:
                logits = self._forward(batch).logits
        return logits if logits.dim() == 2 else logits[keep.to(logits.device)]

    @cached_property
    def _keeps_logits(self) -> bool:
        """Whether the head can run on chosen positions; older and remote code takes a number or nothing instead."""
        wrapped = hasattr(self.model, "get_base_model")
        target = self.model.get_base_model() if wrapped else self.model  # type: ignore[operator]
        if "logits_to_keep" not in inspect.signature(target.forward).parameters:
            return False
        tokens = torch.ones(1, 2, dtype=torch.long, device=self.device)
        keep = torch.tensor([[False, True]], device=self.device)
        try:
            with torch.no_grad():
                logits = self.model(input_ids=tokens, use_cache=False, logits_to_keep=keep).logits
        except torch.OutOfMemoryError:
            raise
        except _REFUSALS as error:
            logger.debug("logits cannot be kept by position: %s", error)
            return False
        return bool(logits.shape[:-1].numel() == 1)

    def _forward(self, batch: Batch, **kwargs: Any) -> Any:
        # A chain of tokens is what a causal model expects anyway: right padding needs no mask.
        if self.packed:
            kwargs |= {
                "attention_mask": self._mask_forms[0](batch),
                "position_ids": batch.position_ids.to(self.device),
            }
        return self.model(input_ids=batch.input_ids.to(self.device), use_cache=False, **kwargs)

    def _possible_mask_forms(self) -> Iterator[Callable[[Batch], Tensor | dict[str, Tensor]]]:
        """The ways in which a model may want its mask, the likeliest first; `agrees` finds the right one."""
        config = text_config(self.model)
        window = getattr(config, "sliding_window", None)
        chunk = getattr(config, "attention_chunk_size", None)
        reach: dict[str, dict[str, int | None]] = {
            "full_attention": {},
            "sliding_attention": {"window": window},
            "chunked_attention": {"chunk": chunk},
        }
        kinds = set(getattr(config, "layer_types", None) or ())
        if kinds and kinds <= set(reach):
            yield lambda batch: {kind: self._mask(batch, **reach[kind]) for kind in kinds}
        if window:
            yield lambda batch: self._mask(batch, window=window)
        yield self._mask

    def _mask(self, batch: Batch, **reach: int | None) -> Tensor:
        ends, positions = batch.subtree_end.to(self.device), batch.position_ids.to(self.device)
        return packing.additive_mask(packing.visible(ends, positions, **reach), self.dtype)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which columns of a batch, seen as one long row, predict which tokens of which member."""

    members: tuple[int, ...]
    columns: Tensor
    targets: Tensor
    owners: Tensor

    @classmethod
    def of(cls, batch: Batch, requests: Sequence[Request]) -> _Wanted:
        width = batch.input_ids.shape[1]
        members = tuple(member for row in batch.rows for member in row.members)
        columns = [tail + place * width for place, row in enumerate(batch.rows) for tail in row.tails]
        targets = [token for member in members for token in requests[member].continuation]
        lengths = torch.tensor([len(requests[member].continuation) for member in members])
        owners = torch.repeat_interleave(torch.arange(len(members)), lengths)
        return cls(members, torch.cat(columns), torch.tensor(targets), owners)


def _normalisers(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the sum of exponentials at each position, in at least float32, and the largest logit there."""
    precision = torch.promote_types(logits.dtype, torch.float32)
    size = _HEAD_ELEMENTS["cpu" if logits.device.type == "cpu" else "accelerator"]
    parts = logits.split(max(1, size // logits.shape[-1]))
    return (
        torch.cat([part.to(precision).logsumexp(dim=-1) for part in parts]),
        torch.cat([part.detach().amax(dim=-1) for part in parts]),
    )


@dataclass(frozen=True, slots=True)
class _Extent:
    """What packed rows have been checked for: their width and depth, and whether they branched."""

    width: int = 0
    depth: int = 0
    branching: bool = False

    def __le__(self, other: _Extent) -> bool:
        return self.width <= other.width and self.depth <= other.depth and self.branching <= other.branching

    def __or__(self, other: _Extent) -> _Extent:
        return _Extent(max(self.width, other.width), max(self.depth, other.depth), self.branching or other.branching)


def _branches(row: Row) -> bool:
    return int(row.subtree_end.min()) < len(row)


def _telling(batch: Batch) -> list[tuple[Row, int]]:
    """The rows, with a member of each, on which a wrong mask shows.

    The deepest member meets every window; the last of the widest row that branches has all its siblings before it.
    """
    deepest = max(batch.rows, key=lambda row: int(row.depth.max()))
    end = max(range(len(deepest.tails)), key=lambda place: int(deepest.depth[deepest.tails[place][-1]]))
    branching = [row for row in batch.rows if _branches(row)]
    return [(deepest, deepest.members[end]), *((row, row.members[-1]) for row in branching[:1])]


def _pairs(scores: Scores) -> list[tuple[float, bool]]:
    return list(zip(map(float, scores.loglikelihoods.tolist()), scores.greedy.tolist(), strict=True))
