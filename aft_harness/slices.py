"""The grammar of document slices: `a:b` counts documents by id, `split[a:b]` names rows of a split.

Knows text and numbers. Options, YAML and Python use the same two forms.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from aft_harness.errors import ParseError

Item = TypeVar("Item")

# No data set has more rows than eighteen digits count, and Python's own slices take no longer numbers.
_BOUNDS = re.compile(r"(?P<start>[0-9]{0,18}):(?P<stop>[0-9]{0,18})")
_SPLIT = re.compile(r"(?P<split>[\w.-]+)(?:\[(?P<bounds>[^\]]*)\])?")


@dataclass(frozen=True)
class Slice:
    """Consecutive documents, by their place from 0.

    Attributes:
        start: The first one.
        stop: The one after the last; None means all that follow.
    """

    start: int = 0
    stop: int | None = None

    @classmethod
    def parse(cls, text: str) -> Slice:
        """Reads `a:b`, either of which may be left out.

        Raises:
            ParseError: The text has another form.

        Example:
            >>> Slice.parse("400:1188")
            Slice(start=400, stop=1188)
        """
        match = _BOUNDS.fullmatch(text)
        if match is None:
            raise ParseError(f"{text!r} is not a slice of documents; expected A:B, such as 400:1188, 400: or :100")
        return cls(int(match["start"] or 0), int(match["stop"]) if match["stop"] else None)

    def __contains__(self, index: int) -> bool:
        """Whether the document at `index` belongs to the slice."""
        return self.start <= index and (self.stop is None or index < self.stop)

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Those of `items` that the slice means."""
        return items[self.start : self.stop]

    def __str__(self) -> str:
        """The slice in its grammar."""
        return f"{self.start}:{'' if self.stop is None else self.stop}"


ALL = Slice()
"""Every document."""


@dataclass(frozen=True)
class SplitSlice:
    """Rows of one split of a dataset.

    Attributes:
        split: Its name.
        rows: Which of its rows.
    """

    split: str
    rows: Slice = ALL

    @classmethod
    def parse(cls, text: str) -> SplitSlice:
        """Reads `split` or `split[a:b]`.

        Raises:
            ParseError: The text has another form.
        """
        match = _SPLIT.fullmatch(text)
        if match is None or (match["bounds"] is not None and not _BOUNDS.fullmatch(match["bounds"])):
            raise ParseError(f"{text!r} does not name rows of a split; expected SPLIT or SPLIT[A:B]")
        return cls(match["split"], Slice.parse(match["bounds"]) if match["bounds"] else ALL)
