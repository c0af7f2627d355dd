from __future__ import annotations

import random

import pytest
import torch
from reader_cases import FakeReader, logits_after

from aft_harness.engine.scoring import Request
from aft_harness.engine.sequences import Sequences


def requests(count: int = 30, seed: int = 0) -> list[Request]:
    draw = random.Random(seed)
    prefix = tuple(draw.randrange(11) for _ in range(9))
    contexts = [prefix + tuple(draw.randrange(2) for _ in range(draw.randrange(1, 5))) for _ in range(count // 3)]
    return [
        Request(draw.choice([*contexts, (1,)]), tuple(draw.randrange(3) for _ in range(draw.randrange(1, 5))))
        for _ in range(count)
    ]


def oracle(request: Request, shift: float = 0.0) -> tuple[float, bool]:
    """A plain loop over the continuation."""
    history, total, greedy = list(request.context), 0.0, True
    for token in request.continuation:
        logits = logits_after(history, shift)
        total += float(logits.log_softmax(dim=-1)[token])
        greedy &= int(logits.argmax()) == token
        history.append(token)
    return total, greedy


def check(found: list[tuple[float, bool]], asked: list[Request], shift: float = 0.0) -> None:
    expected = [oracle(request, shift) for request in asked]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize("sizes", [(16, 5, 8), (64, 64, 64), (1, 1, 3)])
def test_scores_are_those_of_a_plain_loop(sharing: bool, sizes: tuple[int, int, int]) -> None:
    reader, asked = FakeReader(*sizes), requests()
    sequences = Sequences(reader, sharing=sharing)
    seen: list[int] = []
    (found,) = sequences.loglikelihoods(asked, on_scored=lambda members, results: seen.extend(members))
    check(found, asked)
    assert sequences.sharing == sharing and sorted(seen) == list(range(len(asked)))


def test_sharing_reads_less() -> None:
    read = []
    for sharing in (True, False):
        reader, asked = FakeReader(64, 64, 64), requests(90)
        Sequences(reader, sharing=sharing).loglikelihoods(asked)
        read.append(reader.read)
    assert read[0] < read[1] / 2


def test_several_steerings_take_turns() -> None:
    reader, asked = FakeReader(4, 5, 4), requests(200)
    steerings = [None, {1: torch.tensor([0.25, 0.25])}, {2: torch.tensor([-1.0])}]
    turns: list[tuple[int, int]] = []

    def record(members: list[int], results: list[list[tuple[float, bool]]]) -> None:
        turns.append((len(members), len(results)))
        for result, shift in zip(results, (0.0, 0.5, -1.0), strict=True):
            check(result, [asked[member] for member in members], shift)

    found = Sequences(reader).loglikelihoods(asked, steerings=steerings, on_scored=record)
    for result, shift in zip(found, (0.0, 0.5, -1.0), strict=True):
        check(result, asked, shift)
    assert len(turns) > 1 and sum(size for size, _ in turns) == len(asked)


def test_what_is_known_is_not_scored() -> None:
    reader, asked = FakeReader(), requests()
    seen: list[int] = []
    (found,) = Sequences(reader).loglikelihoods(
        asked, known=range(0, 30, 2), on_scored=lambda members, results: seen.extend(members)
    )
    assert sorted(seen) == list(range(1, 30, 2))
    check(found[1::2], asked[1::2])


def test_a_model_that_mixes_sequences_reads_them_one_by_one() -> None:
    reader, asked = FakeReader(), requests()
    reader.blind = True
    sequences = Sequences(reader)
    sequences.loglikelihoods(asked)
    assert not sequences.sharing
