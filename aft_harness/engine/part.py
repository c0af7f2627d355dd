"""Which passes of many are one's own, where several processes share them. Knows numbers only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Every `count`-th pass, from `index` on: neighbours cost about the same, so that all parts do.

    Passes are counted over all work that is laid out, whatever is known of it already. So parts depend on nothing but
    the work, and together they are exactly the passes that one process runs.

    Attributes:
        index: Which part this is, from 0.
        count: How many there are.
    """

    index: int = 0
    count: int = 1

    def takes(self, number: int) -> bool:
        """Whether a pass belongs to this part."""
        return number % self.count == self.index


WHOLE = Part()
