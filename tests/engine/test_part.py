"""Passes that several processes share: together they are exactly those of one."""

from __future__ import annotations

import random
from typing import Any

import pytest

from aft_harness.engine.part import WHOLE, Part
from aft_harness.engine.scoring import Engine, Request


def requests() -> list[Request]:
    draw = random.Random(0)
    shared = [tuple(draw.randrange(3, 300) for _ in range(draw.randrange(4, 30))) for _ in range(12)]
    return [Request(context, tuple(draw.randrange(3, 300) for _ in range(2))) for context in shared for _ in range(3)]


def engine(model: Any, packed: bool = True) -> Engine:
    return Engine(model, model.model.layers, model.device, packed=packed)


def passes(of: Engine, asked: list[Request], part: Part, known: range = range(0)) -> list[dict[int, Any]]:
    """What each pass of a part scored."""
    found: list[dict[int, Any]] = []

    def record(members: Any, results: Any) -> None:
        found.append(dict(zip(members, results[0], strict=True)))

    of.loglikelihoods(asked, 60, on_scored=record, part=part, known=known)
    return found


@pytest.mark.parametrize("packed", [True, False])
def test_the_parts_are_the_whole_to_the_last_bit_and_share_nothing(tiny_model: Any, packed: bool) -> None:
    model, asked = tiny_model("llama"), requests()
    (whole,) = engine(model, packed).loglikelihoods(asked, 60)
    found: dict[int, Any] = {}
    sizes = []
    for index in range(3):
        scored = passes(engine(model, packed), asked, Part(index, 3))
        for each in scored:
            assert not found.keys() & each.keys()
            found |= each
        sizes.append(len(scored))
    assert [found[place] for place in range(len(asked))] == whole
    assert max(sizes) - min(sizes) <= 1 <= min(sizes)


def test_parts_do_not_depend_on_what_is_known(tiny_model: Any) -> None:
    model, asked = tiny_model("llama"), requests()
    first, second = (
        {member for each in passes(engine(model), asked, Part(1, 2), known) for member in each}
        for known in (range(0), range(10))
    )
    assert second <= first and first - second <= set(range(10))


def test_a_part_of_one_is_everything() -> None:
    assert all(WHOLE.takes(number) for number in range(5))
    assert [number for number in range(7) if Part(1, 3).takes(number)] == [1, 4]
