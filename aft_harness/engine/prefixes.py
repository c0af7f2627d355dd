"""What prompts begin with in common: which of them are read after one and the same prefix.

Knows token sequences. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SHORTEST = 16
"""Tokens below which a prefix is not worth a segment of its own."""


@dataclass(frozen=True)
class Cluster:
    """Prompts that share a prefix.

    Attributes:
        members: Their indices; those with the most tokens come first.
        prefix: How many tokens they share; 0 where none are worth it.
    """

    members: tuple[int, ...]
    prefix: int


def clusters(prompts: Sequence[Sequence[int]], shortest: int = SHORTEST) -> list[Cluster]:
    """Sorts prompts into groups of which each is read after one prefix.

    Prompts in the order of their tokens join the group before them as long as the group then saves no fewer tokens than
    it did. The prefix leaves a token of every prompt, since a text begins with what follows the last one.

    Args:
        prompts: Token ids; none is empty.
        shortest: Shared tokens below which a prompt stays by itself.

    Returns:
        Every prompt in exactly one group: groups with a prefix first, then one of all that share nothing.
    """
    found: list[tuple[list[int], int]] = []
    for index in sorted(range(len(prompts)), key=lambda index: tuple(prompts[index])):
        prompt = prompts[index]
        if found:
            members, shared = found[-1]
            common = _common(prompts[members[-1]], prompt, min(shared, len(prompt) - 1))
            if common >= shortest and common * len(members) >= shared * (len(members) - 1):
                members.append(index)
                found[-1] = members, common
                continue
        found.append(([index], len(prompt) - 1))
    groups = [Cluster(_longest_first(prompts, members), shared) for members, shared in found if len(members) > 1]
    alone = [index for members, _ in found if len(members) == 1 for index in members]
    return [*groups, *([Cluster(_longest_first(prompts, alone), 0)] if alone else [])]


def _longest_first(prompts: Sequence[Sequence[int]], members: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(members, key=lambda index: (-len(prompts[index]), index)))


def _common(left: Sequence[int], right: Sequence[int], most: int) -> int:
    for place in range(most):
        if left[place] != right[place]:
            return place
    return most
