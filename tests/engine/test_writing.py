from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from reader_cases import FakeReader, logits_after
from torch import Tensor

from aft_harness.engine.sequences import Sequences
from aft_harness.engine.writing import write

PROMPTS = [[1, 2, 3, 4], [1, 2, 3], [1, 2, 3, 4], [5], [1, 2, 6], [1, 2, 3, 4, 9, 9], [7, 7]]


def ended(tokens: Sequence[int]) -> bool:
    return tokens[-1] in (0, 4)


def oracle(prompt: Sequence[int], most_new: int, shift: float = 0.0) -> list[int]:
    written: list[int] = []
    while len(written) < most_new and not (written and ended(written)):
        written.append(int(logits_after([*prompt, *written], shift).argmax()))
    return written


@pytest.mark.parametrize("beside", [1, 2, 3, 50])
@pytest.mark.parametrize("sharing", [True, False])
def test_texts_are_those_of_a_plain_loop(beside: int, sharing: bool) -> None:
    seen: dict[int, list[int]] = {}
    found = write(
        Sequences(FakeReader(), sharing=sharing),
        PROMPTS,
        9,
        beside=beside,
        ended=ended,
        on_written=lambda index, tokens: seen.__setitem__(index, list(tokens)),
    )
    assert found == [oracle(prompt, 9) for prompt in PROMPTS]
    assert [seen[index] for index in range(len(PROMPTS))] == found
    assert len({len(text) for text in found}) > 1


def test_a_steering_steers() -> None:
    found = write(Sequences(FakeReader()), PROMPTS, 5, steering={1: torch.tensor([0.5])}, ended=ended)
    assert found == [oracle(prompt, 5, 0.5) for prompt in PROMPTS] != [oracle(prompt, 5) for prompt in PROMPTS]


def test_the_caller_chooses() -> None:
    def least(logits: Tensor) -> Tensor:
        return logits.argmin(dim=-1)

    ((token,),) = write(Sequences(FakeReader()), [[3, 1]], 1, choose=least)
    assert token == int(logits_after([3, 1]).argmin())
    assert write(Sequences(FakeReader()), [], 3) == []
