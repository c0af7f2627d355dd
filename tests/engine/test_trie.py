"""Sequences in packed rows: nothing is lost, every token sees its own sequence, and little is laid out twice."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import strategies as st
from trie_cases import Drawn, Sequences, ancestors, for_all, paths, prefixes, requests, widths

from aft_harness.engine.rows import batches, stats
from aft_harness.engine.trie import Trie, pack


@for_all(requests(), widths)
def test_every_sequence_is_in_exactly_one_row(drawn: Drawn, width: int) -> None:
    sequences, tails = drawn
    members = [member for row in pack(sequences, tails, width) for member in row.members]
    assert sorted(members) == list(range(len(sequences)))


@for_all(requests(), widths)
def test_the_last_token_sees_exactly_its_sequence(drawn: Drawn, width: int) -> None:
    sequences, tails = drawn
    for row, member, path in paths(pack(sequences, tails, width)):
        assert row.tokens[path].tolist() == sequences[member]
        assert row.depth[path].tolist() == list(range(len(sequences[member])))


@for_all(requests(), widths)
def test_tails_are_the_last_columns_of_a_sequence(drawn: Drawn, width: int) -> None:
    sequences, tails = drawn
    for row in pack(sequences, tails, width):
        for member, tail in zip(row.members, row.tails, strict=True):
            assert tail.dtype == torch.int64
            assert tail.tolist() == ancestors(row, int(tail[-1]))[-tails[member] :]
            assert len(tail) == tails[member]


@for_all(requests(), widths)
def test_no_row_exceeds_the_width_unless_one_sequence_does(drawn: Drawn, width: int) -> None:
    sequences, tails = drawn
    for row in pack(sequences, tails, width):
        assert len(row) <= max(width, *(len(sequences[member]) for member in row.members))


@for_all(requests(), widths)
def test_a_row_is_the_trie_of_its_members(drawn: Drawn, width: int) -> None:
    sequences, tails = drawn
    rows = pack(sequences, tails, width)
    for row in rows:
        laid = [sequences[member] for member in row.members]
        assert laid == sorted(laid)
        assert len(row) == len(prefixes(laid))
        assert {row.tokens.dtype, row.depth.dtype, row.subtree_end.dtype} == {torch.int64}
        used = {column for _, _, path in paths([row]) for column in path}
        assert used == set(range(len(row)))
    assert stats(rows) == (sum(map(len, rows)), sum(map(len, sequences)))


@for_all(requests())
def test_a_row_wide_enough_holds_everything(drawn: Drawn) -> None:
    sequences, tails = drawn
    (row,) = pack(sequences, tails, len(prefixes(sequences)))
    assert len(row.members) == len(sequences)


@for_all(requests())
def test_width_one_gives_plain_causal_rows(drawn: Drawn) -> None:
    for row in pack(drawn[0], drawn[1], 1):
        assert row.depth.tolist() == list(range(len(row)))
        assert row.subtree_end.tolist() == [len(row)] * len(row)


@for_all(requests(), widths)
def test_the_order_of_the_sequences_does_not_change_the_rows(drawn: Drawn, width: int) -> None:
    sequences, tails = drawn
    rows = pack(sequences, tails, width)
    reversed_rows = pack(sequences[::-1], tails[::-1], width)
    assert [row.tokens.tolist() for row in rows] == [row.tokens.tolist() for row in reversed_rows]


def test_nothing_packs_into_no_rows() -> None:
    assert pack([], [], 8) == []
    assert batches([], 8) == []


@pytest.mark.parametrize(
    ("sequences", "tails", "width", "message"),
    [
        ([[1], []], [1, 1], 8, "sequence 1"),
        ([[1, 2]], [0], 8, "tail of 0"),
        ([[1, 2]], [3], 8, "tail of 3"),
        ([[1, 2]], [1, 1], 8, "1 sequences but 2 tails"),
        ([[1, 2]], [1], 0, "width"),
    ],
)
def test_pack_refuses(sequences: Sequences, tails: list[int], width: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(sequences, tails, width)


@for_all(requests(), widths)
def test_a_trie_lays_out_any_width_again(drawn: Drawn, width: int) -> None:
    trie = Trie(*drawn)
    laid = [[row.tokens.tolist() for row in trie.rows(columns)] for columns in (width, 1, width)]
    trie.choose_width(64, attention_cost=0.01)
    laid.append([row.tokens.tolist() for row in trie.rows(width)])
    assert laid[0] == laid[2] == laid[3]
    assert laid[0] == [row.tokens.tolist() for row in pack(drawn[0], drawn[1], width)]
    assert laid[1] == [row.tokens.tolist() for row in pack(drawn[0], drawn[1], 1)]


# Packing quality


def few_shot(documents: int, prefix: int, context: range, ending: range, endings: int = 4) -> Sequences:
    """Build a multiple-choice task: one shared prefix, then documents that share no further token with each other."""
    rng = random.Random(0)
    fresh = iter(range(1_000_000))

    def tokens(count: int) -> list[int]:
        return [next(fresh) for _ in range(count)]

    shots = tokens(prefix)
    contexts = [shots + tokens(rng.choice(context)) for _ in range(documents)]
    return [start + tokens(rng.choice(ending)) for start in contexts for _ in range(endings)]


def test_a_few_shot_prefix_is_laid_out_once_a_row() -> None:
    # Beyond the 300 shared tokens a document takes 60 + 4 * 20 = 140. Five fit into the other 724 columns of a row, so
    # 200 documents need 40 rows. The order of the requests must not matter.
    sequences = few_shot(200, 300, context=range(60, 61), ending=range(20, 21))
    random.Random(1).shuffle(sequences)
    rows = pack(sequences, [20] * len(sequences), 1024)
    assert stats(rows) == (200 * 140 + 40 * 300, 800 * 380)


def test_documents_of_any_length_share_their_prefix() -> None:
    sequences = few_shot(100, 300, context=range(20, 100), ending=range(5, 40))
    unshared = len(prefixes(sequences)) - 300
    largest = 99 + 4 * 39
    # Best fit opens a row only when no other has room for the document, hence all rows but one have less than `largest`
    # of their 724 columns free.
    most_rows = math.ceil(unshared / (724 - largest)) + 1
    rows = pack(sequences, [1] * len(sequences), 1024)
    assert len(rows) <= most_rows
    assert stats(rows)[0] <= unshared + most_rows * 300


def test_a_context_too_large_to_share_a_row_still_shares_with_its_endings() -> None:
    # 800 tokens and four endings of 50 fill a row of 1000: one row a document, each token laid out once.
    sequences = few_shot(20, 0, context=range(800, 801), ending=range(50, 51))
    rows = pack(sequences, [50] * len(sequences), 1000)
    assert [len(row) for row in rows] == [1000] * 20


def test_unshared_sequences_fill_their_rows() -> None:
    rng = random.Random(0)
    sequences = [[rng.randrange(50_000) for _ in range(rng.randint(20, 500))] for _ in range(500)]
    rows = pack(sequences, [1] * 500, 1024)
    assert stats(rows)[0] >= 0.9 * len(rows) * 1024
    filled = batches(rows, 8192)
    assert stats(rows)[0] >= 0.95 * sum(batch.input_ids.numel() for batch in filled)


# Choosing a width


def measured_cost(sequences: Sequences, width: int, max_tokens: int, attention_cost: float) -> float:
    """Cost of the batches that packing really makes."""
    shapes = [batch.input_ids.shape for batch in batches(pack(sequences, [1] * len(sequences), width), max_tokens)]
    return sum(rows * columns * (1 + columns * attention_cost) for rows, columns in shapes)


@pytest.mark.parametrize(("attention_cost", "expected"), [(0.0, 2048), (1e-3, 512), (1.0, 256)])
def test_choose_width_weighs_sharing_against_attention(attention_cost: float, expected: int) -> None:
    # A row of k documents takes about 100 + 120 k columns: one document in 256 columns, three in 512, seven in 1024.
    sequences = few_shot(100, 100, context=range(70, 71), ending=range(20, 31), endings=2)
    widths = (128, 256, 512, 1024, 2048)
    tails = [1] * len(sequences)
    assert Trie(sequences, tails).choose_width(8192, attention_cost=attention_cost, widths=widths) == expected


@for_all(requests(), st.lists(widths, min_size=1), st.integers(1, 300), st.floats(0, 1))
def test_choose_width_takes_the_cheapest_of_the_batches_made(
    drawn: Drawn, candidates: list[int], max_tokens: int, attention_cost: float
) -> None:
    sequences, tails = drawn
    longest = max(map(len, sequences))
    costs = {
        width: measured_cost(sequences, width, max_tokens, attention_cost)
        for width in sorted({max(min(width, max_tokens), longest) for width in candidates})
    }
    chosen = Trie(sequences, tails).choose_width(max_tokens, attention_cost=attention_cost, widths=candidates)
    assert chosen == min(costs, key=costs.__getitem__)


def test_choose_width_is_never_narrower_than_the_longest_sequence() -> None:
    assert Trie([[1] * 700, [2]], [1, 1]).choose_width(300, attention_cost=1.0, widths=(128, 256)) == 700


def test_choose_width_takes_the_narrowest_of_equals() -> None:
    assert Trie([[1] * 100], [1]).choose_width(4096, attention_cost=0.0, widths=(512, 256, 128)) == 128


def test_choose_width_judges_many_sequences_by_the_first_of_them() -> None:
    few, many = ([[1, 2, 3, document, ending] for document in range(count) for ending in (1, 2)] for count in (9, 9000))
    chosen = [Trie(some, [1] * len(some)).choose_width(512, attention_cost=1e-3) for some in (many[:4000], many)]
    assert chosen[0] == chosen[1]
    assert Trie(few, [1] * len(few)).choose_width(512, attention_cost=1e-3) == 128


def test_choose_width_refuses() -> None:
    with pytest.raises(ValueError, match="no candidate"):
        Trie([[1]], [1]).choose_width(8, attention_cost=0.0, widths=())
    with pytest.raises(ValueError, match="sequence 0"):
        Trie([[]], [1])
