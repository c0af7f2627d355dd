"""What a model is able to do, found out by running it: packed rows, passes that resume at a layer, logits by position.

Nothing is taken from a list of architectures: the widest and deepest rows of the real work are scored packed and plain,
and a model that disagrees with itself is run on plain rows from then on.

Knows forward passes and rows. Knows nothing of requests and of steering: what is compared comes from the caller.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

import torch

from aft_harness.engine.forward import ForwardPass, HeadForm
from aft_harness.engine.rows import Batch, Row, batches, pad
from aft_harness.engine.trie import pack

logger = logging.getLogger(__name__)

TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3}
"""Largest mean |difference| of token loglikelihoods at which packed and plain rows count as equal, by dtype."""
COARSE_TOLERANCE = 0.15
"""The same for half precision, where rows of another shape differ by rounding alone; a wrong mask is off by nats."""

_FEWEST = 4
"""Tokens over which half precision is judged at least: logits of 16 and more have steps of 1/8 in bfloat16, so that a
single token may be off by two of them."""

# What a model may raise when it is given a mask or positions that it has no use for.
_REFUSALS = (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError, NotImplementedError)

_ROUNDING = 0.02
"""Relative difference of logits that half precision may make of a product of another shape."""

_BOTTOM = 8
"""Layers that are run to see what a model makes of sequences of different lengths."""

T = TypeVar("T")


class Deviation(NamedTuple):
    """How far a loglikelihood that was found in packed rows is from that of a plain row.

    Attributes:
        difference: Of the sums over all tokens, absolute.
        tokens: Number of tokens.
    """

    difference: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Extent:
    """How far rows reach: their width and depth, and whether they branch."""

    width: int = 0
    depth: int = 0
    branching: bool = False

    @classmethod
    def of(cls, batch: Batch) -> Extent:
        """The extent of the rows of a batch."""
        depth = int(batch.position_ids.max()) + 1
        return cls(batch.input_ids.shape[1], depth, any(map(_branches, batch.rows)))

    def __le__(self, other: Extent) -> bool:
        """Whether what holds for `other` has been shown for this extent, too."""
        return self.width <= other.width and self.depth <= other.depth and self.branching <= other.branching

    def __or__(self, other: Extent) -> Extent:
        """The smallest extent that both lie in."""
        return Extent(max(self.width, other.width), max(self.depth, other.depth), self.branching or other.branching)


class Probe:
    """Checks a model's abilities as the work needs them, and remembers what has been checked.

    Attributes:
        covered: What packed rows have been checked for, with the mask form that is in use.
        alone: Whether the model takes one row a pass only: what it makes of a row depends on the rows beside it.
    """

    def __init__(self, forward_pass: ForwardPass) -> None:
        """Starts with nothing checked.

        Args:
            forward_pass: Runs the model. Mask forms that turn out wrong are taken from it: without any left, its rows
                are plain.
        """
        self._forward_pass = forward_pass
        self.covered = Extent()
        self.alone = False
        self._lengths = (sys.maxsize, 0)  # of the shortest and the longest sequence that have been compared
        self._resumes: dict[int, bool] = {}

    @property
    def tolerance(self) -> float:
        """Largest mean |difference| of token loglikelihoods, or of logits, that counts as none."""
        return TOLERANCE.get(self._forward_pass.dtype, COARSE_TOLERANCE)

    def _allowed(self, tokens: int) -> float:
        """Largest |difference| of the loglikelihood of so many tokens that counts as none."""
        half = self._forward_pass.dtype not in TOLERANCE
        return self.tolerance * (max(tokens, _FEWEST) if half else tokens)

    def covers(self, batch: Batch) -> bool:
        """Whether packed rows as wide and deep as these have been checked; only for a model that takes packed rows."""
        return Extent.of(batch) <= self.covered

    def checked(
        self, batch: Batch, score: Callable[[], T], compare: Callable[[T, Collection[int]], Iterable[Deviation]]
    ) -> T | None:
        """Scores a batch; one that is laid out like none before is compared with plain rows.

        Args:
            batch: What is scored.
            score: Scores it, in a way that depends on the mask form in use.
            compare: Compares what `score` returned, for some members of the batch, with plain rows.

        Returns:
            What `score` returned, or None when packed rows are wrong: rows are plain from then on.
        """
        forward_pass = self._forward_pass
        if not forward_pass.packed or self.covers(batch):
            return score()
        while forward_pass.packed:
            try:
                scored = score()
                members = {member for _, member in revealing(batch)}
                # Not the reverse comparison: a difference that is not a number must fail, too.
                if all(found.difference <= self._allowed(found.tokens) for found in compare(scored, members)):
                    self.covered |= Extent.of(batch)
                    return scored
            except torch.OutOfMemoryError:
                raise
            except _REFUSALS as error:
                logger.debug("packed rows failed: %s", str(error))
            forward_pass.mask_forms.pop(0)
            self.covered = Extent()
            self._resumes.clear()
        logger.info("%s does not support packed rows; using plain rows", type(forward_pass.model).__name__)
        return None

    @torch.no_grad()
    def compare_lengths(self, longest: Sequence[int], shortest: Sequence[int]) -> None:
        """Finds out whether a short sequence comes out otherwise beside a long one, in plain rows of one pass.

        A model that chooses its rotary frequencies by the longest sequence of a pass does that: it takes one row a pass
        from then on, and no packed rows. Such a choice is made at the bottom of a model: a few layers tell.

        Args:
            longest: Token ids of the longest sequence that will be run.
            shortest: Those of the shortest.
        """
        low, high = self._lengths
        if self.alone or (low <= len(shortest) and len(longest) <= high):
            return
        self._lengths = min(low, len(shortest)), max(high, len(longest))
        forward_pass = self._forward_pass
        plain = ForwardPass(forward_pass.model, forward_pass.layers, forward_pass.device, packed=False)
        top, last = min(_BOTTOM, len(forward_pass.layers)) - 1, len(shortest) - 1
        found = []
        for sequences in ([longest, shortest], [shortest]):
            rows = [row for sequence in sequences for row in pack([sequence], [1], 1)]
            found.append(plain.hidden(pad(rows), top)[-1, last].float())
        beside, by_itself = found
        if not float((beside - by_itself).norm()) <= self.tolerance * float(by_itself.norm()):
            self.alone = True
            forward_pass.mask_forms.clear()
            name = type(forward_pass.model).__name__
            logger.info("%s: the rows of a batch affect each other; using one row per forward pass", name)

    def resumes(self, batch: Batch, layer: int) -> bool:
        """Whether a run of the layers above `layer`, from its stored output, gives what a full run gives.

        Checked once a layer; a model that fails (one whose upper layers use more of the lower ones than their output)
        is run in full from then on.
        """
        if layer not in self._resumes:
            self._resumes[layer] = self._tried_to_resume(batch, layer)
            if not self._resumes[layer]:
                name = type(self._forward_pass.model).__name__
                logger.info("%s cannot be resumed at layer %d; using full forward passes", name, layer)
        return self._resumes[layer]

    @torch.no_grad()
    def _tried_to_resume(self, batch: Batch, layer: int) -> bool:
        forward_pass = self._forward_pass
        batch = batches([min(batch.rows, key=len)], 1)[0]
        keep = torch.zeros(batch.input_ids.shape, dtype=torch.bool)
        keep[:, -1] = True
        keep[:, 0] = True
        try:
            full = forward_pass.logits(batch, keep, self.head)
            with forward_pass.resumed(layer, forward_pass.hidden(batch, layer)):
                upper = forward_pass.logits(batch, keep, self.head)
            return float((full - upper).abs().float().mean()) <= self.tolerance
        except torch.OutOfMemoryError:
            raise
        except _REFUSALS as error:
            logger.debug("resuming failed: %s", str(error))
            return False

    @cached_property
    def head(self) -> HeadForm:
        """How the head runs on chosen positions; releases of transformers differ, and remote code from all of them."""
        forward_pass = self._forward_pass
        plain = ForwardPass(forward_pass.model, forward_pass.layers, forward_pass.device, packed=False)
        batch = pad([row for tokens in ([1, 1, 1], [2, 2]) for row in pack([tokens], [1], 1)])
        keep = torch.tensor([[False, True, True], [True, False, False]])
        forms: tuple[HeadForm, ...] = ("argument", "module")
        with torch.no_grad():
            whole = plain.logits(batch, keep, "whole")
            for form in forms:
                try:
                    found = plain.returned(batch, keep.to(forward_pass.device), form)
                except torch.OutOfMemoryError:
                    raise
                except _REFUSALS as error:
                    logger.debug("the head does not run on chosen positions by %s: %s", form, str(error))
                    continue
                if found.shape == whole.shape and torch.allclose(found, whole, rtol=_ROUNDING, atol=self.tolerance):
                    return form
        return "whole"

    @contextmanager
    def forgotten(self) -> Iterator[None]:
        """In this block nothing is covered, as the model computes its attention in another way."""
        covered, self.covered = self.covered, Extent()
        try:
            yield
        finally:
            self.covered = covered


def revealing(batch: Batch) -> list[tuple[Row, int]]:
    """The rows, with a member of each, on which a wrong mask shows.

    The deepest member meets every window; the last of the widest row that branches has all its siblings before it, the
    first all of them after it.
    """
    deepest = max(batch.rows, key=lambda row: int(row.depth.max()))
    end = max(range(len(deepest.tails)), key=lambda place: int(deepest.depth[deepest.tails[place][-1]]))
    branching = [row for row in batch.rows if _branches(row)]
    extremes = [(row, row.members[place]) for row in branching[:1] for place in (-1, 0)]
    return [(deepest, deepest.members[end]), *extremes]


def _branches(row: Row) -> bool:
    return int(row.subtree_end.min()) < len(row)
