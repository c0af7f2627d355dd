from __future__ import annotations

import random

import pytest

from aft_harness.engine.decoding import Decode, decodes


def replayed(plan: list[Decode], most_tokens: int, most_leaves: int) -> dict[int, list[list[int]]]:
    """What an engine has read when it predicts each token of each member's tail, by the rules of the decodes alone."""
    state: list[list[int]] = []
    found: dict[int, list[list[int]]] = {}
    for decode in plan:
        assert len(decode.kept) <= most_leaves
        assert len(decode) <= most_tokens + 16 or len(decode.kept) == 1
        last = state[-1] if state else []
        state = [last[:length] for length in decode.kept]
        assert [len(sequence) for sequence in state] == list(decode.kept)
        wanted = []
        columns = zip(decode.tokens, decode.positions, decode.first, decode.count, decode.wanted, strict=True)
        for token, position, first, count, asked in columns:
            owners = state[first : first + count]
            assert len(owners) == count > 0
            assert all(sequence == owners[0] and len(sequence) == position for sequence in owners)
            for sequence in owners:
                sequence.append(int(token))
            if asked:
                wanted.append(list(owners[0]))
        assert [len(sequence) for sequence in state] == list(decode.lengths)
        for member, leaf, rows in zip(decode.members, decode.leaves, decode.rows, strict=True):
            found[member] = [wanted[row] for row in rows]
            assert state[leaf][: len(wanted[rows[-1]])] == wanted[rows[-1]]
    return found


@pytest.mark.parametrize("seed", range(150))
def test_every_token_is_predicted_after_what_stands_before_it(seed: int) -> None:
    draw = random.Random(seed)
    prefixes = [[draw.randrange(3) for _ in range(draw.randrange(40))] for _ in range(3)]
    sequences = [
        draw.choice(prefixes) + [draw.randrange(2) for _ in range(draw.randrange(1, 12))]
        for _ in range(draw.randrange(1, 40))
    ]
    tails = [draw.randrange(1, min(len(sequence), draw.choice([2, 6, 60])) + 1) for sequence in sequences]
    most_tokens, most_leaves = draw.choice([1, 20, 60, 1000]), draw.choice([1, 2, 5, 100])
    keeping = draw.random() < 0.9
    plan = list(decodes(sequences, tails, most_tokens=most_tokens, most_leaves=most_leaves, keeping=keeping))
    found = replayed(plan, most_tokens, most_leaves)
    for index, (sequence, tail) in enumerate(zip(sequences, tails, strict=True)):
        assert found.pop(index) == [sequence[: len(sequence) - tail + place + 1] for place in range(tail)]
    assert not found
    assert keeping or all(not any(decode.kept) for decode in plan)


def test_a_shared_prefix_is_read_once_however_many_decodes_there_are() -> None:
    prefix = list(range(50))
    sequences = [[*prefix, 60 + question, 90, choice] for question in range(20) for choice in range(4)]
    plan = list(decodes(sequences, [1] * len(sequences), most_tokens=30, most_leaves=100))
    assert len(plan) > 4 and sum(map(len, plan)) == 50 + 20 * (2 + 4)
    assert max(decode.cells for decode in plan) <= 50 + 2 + 30


def test_a_short_request_does_not_cost_the_prefix_of_others() -> None:
    long = [[1, *range(2, 80), last] for last in (100, 101, 102)]
    whole = [1, *range(2, 60)]  # predicts from its first token on, within what the others share
    plan = list(decodes([*long, [*whole, 99]], [1, 1, 1, 59], most_tokens=1000, most_leaves=10))
    assert sum(map(len, plan)) < 2 * len(long[0]) + 10
