"""Packed rows against plain rows: the same tokens, the same positions, the same visibility, the same logits."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedModel
from transformers.masking_utils import (
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

from aft_harness.engine.packing import (
    Batch,
    Row,
    additive_mask,
    batches,
    choose_width,
    fitted,
    joined,
    pack,
    stats,
    visible,
)

Sequences = list[list[int]]
Drawn = tuple[Sequences, list[int]]


@st.composite
def requests(draw: st.DrawFn) -> Drawn:
    """Draw sequences that share a lot, with duplicates and prefixes of one another, and their tails."""
    # Token ids of one to four bytes: no order but that of whole tokens keeps prefixes together for all of them.
    token = st.sampled_from([0, 1, 256, 2**31 - 1])
    sequences = draw(st.lists(st.lists(token, min_size=1, max_size=12), min_size=1, max_size=12))
    for origin in draw(st.lists(st.sampled_from(sequences), max_size=6)):
        kept = draw(st.integers(1, len(origin)))
        sequences.append(origin[:kept] + draw(st.lists(token, max_size=3)))
    sequences = draw(st.permutations(sequences))
    return sequences, [draw(st.integers(1, len(sequence))) for sequence in sequences]


widths = st.integers(1, 40)


def for_all(*strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Do as `given`, with no limit on the time an example takes."""
    return lambda test: settings(deadline=None)(given(*strategies)(test))


def ancestors(row: Row, column: int) -> list[int]:
    """Find by plain loop the columns that a column sees, in the order of depth."""
    seen = [other for other in range(len(row)) if other <= column < int(row.subtree_end[other])]
    return sorted(seen, key=lambda other: int(row.depth[other]))


def paths(rows: list[Row]) -> Iterator[tuple[Row, int, list[int]]]:
    """Yield each packed sequence: its row, its index and, from its last tail column back, its columns."""
    for row in rows:
        for member, tail in zip(row.members, row.tails, strict=True):
            yield row, member, ancestors(row, int(tail[-1]))


def prefixes(sequences: Sequences) -> set[tuple[int, ...]]:
    """List the nodes of the trie of sequences."""
    return {tuple(sequence[:end]) for sequence in sequences for end in range(1, len(sequence) + 1)}


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
    for row in pack(*drawn, 1):
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


def test_a_few_shot_prefix_is_laid_once_a_row() -> None:
    # Beyond the 300 shared tokens a document takes 60 + 4 * 20 = 140. Five fit into the other 724 columns of a row, so
    # 200 documents need 40 rows. The order of the requests must not matter.
    sequences = few_shot(200, 300, context=range(60, 61), ending=range(20, 21))
    random.Random(1).shuffle(sequences)
    rows = pack(sequences, [20] * len(sequences), 1024)
    assert stats(rows) == (200 * 140 + 40 * 300, 800 * 380)


def test_documents_of_any_length_share_their_prefix() -> None:
    sequences = few_shot(100, 300, context=range(20, 100), ending=range(5, 40))
    own = len(prefixes(sequences)) - 300
    largest = 99 + 4 * 39
    # Best fit opens a row only when no other has room for the document, hence all rows but one have less than `largest`
    # of their 724 columns free.
    most_rows = math.ceil(own / (724 - largest)) + 1
    rows = pack(sequences, [1] * len(sequences), 1024)
    assert len(rows) <= most_rows
    assert stats(rows)[0] <= own + most_rows * 300


def test_a_context_too_large_to_share_a_row_still_shares_with_its_endings() -> None:
    # 800 tokens and four endings of 50 fill a row of 1000: one row a document, each token laid once.
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
    assert choose_width(sequences, tails, 8192, attention_cost=attention_cost, widths=widths) == expected


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
    chosen = choose_width(sequences, tails, max_tokens, attention_cost=attention_cost, widths=candidates)
    assert chosen == min(costs, key=costs.__getitem__)


def test_choose_width_is_never_narrower_than_the_longest_sequence() -> None:
    assert choose_width([[1] * 700, [2]], [1, 1], 300, attention_cost=1.0, widths=(128, 256)) == 700


def test_choose_width_takes_the_narrowest_of_equals() -> None:
    assert choose_width([[1] * 100], [1], 4096, attention_cost=0.0, widths=(512, 256, 128)) == 128


def test_choose_width_judges_many_sequences_by_the_first_of_them() -> None:
    few, many = ([[1, 2, 3, document, ending] for document in range(count) for ending in (1, 2)] for count in (9, 9000))
    chosen = [choose_width(some, [1] * len(some), 512, attention_cost=1e-3) for some in (many[:4000], many)]
    assert chosen[0] == chosen[1]
    assert choose_width(few, [1] * len(few), 512, attention_cost=1e-3) == 128


def test_choose_width_refuses() -> None:
    with pytest.raises(ValueError, match="no candidate"):
        choose_width([[1]], [1], 8, attention_cost=0.0, widths=())
    with pytest.raises(ValueError, match="sequence 0"):
        choose_width([[]], [1], 8, attention_cost=0.0)


# Batches


@for_all(requests(), widths, st.integers(1, 100))
def test_batches_pad_right_and_lose_no_row(drawn: Drawn, width: int, max_tokens: int) -> None:
    rows = pack(*drawn, width)
    made = batches(rows, max_tokens)
    assert sorted(id(row) for batch in made for row in batch.rows) == sorted(map(id, rows))
    for batch in made:
        count, wide = batch.input_ids.shape
        assert count == len(batch.rows)
        assert wide == max(map(len, batch.rows))
        assert count == 1 or count * wide <= max_tokens
        for index, row in enumerate(batch.rows):
            padding = range(len(row), wide)
            assert 2 * len(row) >= wide
            assert batch.input_ids[index].tolist() == row.tokens.tolist() + [0] * len(padding)
            assert batch.position_ids[index].tolist() == row.depth.tolist() + [0] * len(padding)
            assert batch.subtree_end[index].tolist() == row.subtree_end.tolist() + [at + 1 for at in padding]
    shapes = [batch.input_ids.shape[1] for batch in made]
    assert shapes == sorted(shapes, reverse=True)


def test_batches_are_as_large_as_allowed() -> None:
    rows = [row for start in range(10) for row in pack([[start] * 10], [1], 10)]
    assert [len(batch.rows) for batch in batches(rows, 40)] == [4, 4, 2]
    assert [len(batch.rows) for batch in batches(rows, 39)] == [3, 3, 3, 1]


@pytest.mark.parametrize(
    ("most", "shapes"),
    # Rows of 10, 9, 8 and 6 columns: 7 columns of padding in one batch, 1 and 2 in two.
    [
        (None, [(4, 10)]),
        (7, [(4, 10)]),
        (6, [(3, 10), (1, 6)]),
        (2, [(2, 10), (2, 8)]),
        (0, [(1, n) for n in (10, 9, 8, 6)]),
    ],
)
def test_padding_is_bounded(most: int | None, shapes: list[tuple[int, int]]) -> None:
    rows = [row for size in (9, 6, 10, 8) for row in pack([[size] * size], [1], 10)]
    made = batches(rows, 100, most)
    assert [tuple(batch.input_ids.shape) for batch in made] == shapes


@for_all(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(1, 30))
def test_fitted_rows_are_all_there_and_as_narrow_as_allowed(sizes: list[int], width: int) -> None:
    groups = fitted(sizes, width)
    assert sorted(index for group in groups for index in group) == list(range(len(sizes)))
    assert all(len(group) == 1 or sum(sizes[index] for index in group) <= width for group in groups)
    # No two of them could be one: the least that any fit must do.
    totals = sorted(sum(sizes[index] for index in group) for group in groups)
    assert len(totals) < 2 or totals[0] + totals[1] > width


def test_joined_rows_do_not_see_each_other() -> None:
    rows = pack([(1, 2, 3), (1, 2, 4), (9, 8)], [2, 1, 1], 1)
    ((row, parts),) = joined(rows, 100)
    assert parts == (0, 1, 2) and len(row) == sum(map(len, rows))
    batch = batches([row], 100)[0]
    seen = visible(batch.subtree_end, batch.position_ids)[0]
    blocks = torch.block_diag(*(torch.ones(len(part), len(part)).tril() for part in rows))
    assert torch.equal(seen, blocks.bool())
    for member, tail in zip(row.members, row.tails, strict=True):
        original = next(part for part in rows if member in part.members)
        assert torch.equal(row.tokens[tail], original.tokens[original.tails[original.members.index(member)]])
    assert [len(part) for _, part in joined(rows, 4)] == [1, 1, 1]


# Visibility


sizes = st.none() | st.integers(1, 14)


@for_all(requests(), widths, sizes, sizes)
def test_visibility_is_that_of_plain_rows(drawn: Drawn, width: int, window: int | None, chunk: int | None) -> None:
    def plain(length: int) -> Tensor:
        """Mask of an unpacked row, by the functions that transformers builds its own masks of."""
        rules: list[Any] = [causal_mask_function]
        if window is not None:
            rules.append(sliding_window_causal_mask_function(window))
        if chunk is not None:
            rules.append(chunked_causal_mask_function(chunk, torch.zeros(1, dtype=torch.int64)))
        column = torch.arange(length)
        return torch.stack([rule(0, 0, column[:, None], column) for rule in rules]).all(dim=0)

    for batch in batches(pack(*drawn, width), 100):
        seen = visible(batch.subtree_end, batch.position_ids, window=window, chunk=chunk)
        assert seen.dtype == torch.bool
        for index, row in enumerate(batch.rows):
            for _, _, path in paths([row]):
                expected = torch.zeros(len(path), seen.shape[-1], dtype=torch.bool)
                expected[:, path] = plain(len(path))
                assert seen[index, path].equal(expected)
            padding = torch.eye(seen.shape[-1], dtype=torch.bool)[len(row) :]
            assert seen[index, len(row) :].equal(padding)


@pytest.mark.parametrize("option", ["window", "chunk"])
def test_visible_refuses_an_empty_reach(option: str) -> None:
    ends = torch.tensor([[1]])
    with pytest.raises(ValueError, match=option):
        visible(ends, ends - 1, **{option: 0})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_additive_mask_is_zero_or_lowest(dtype: torch.dtype) -> None:
    rows = pack([[1, 2, 3, 4], [1, 2, 5], [6, 7, 8]], [1, 1, 1], 5)
    (batch,) = batches(rows, 100)
    assert len({len(row) for row in batch.rows}) == 2, "one row must be padded"
    seen = visible(batch.subtree_end, batch.position_ids)
    mask = additive_mask(seen, dtype)
    assert mask.dtype == dtype
    assert mask.shape == (2, 1, 5, 5)
    assert mask[:, 0][seen].eq(0).all()
    assert mask[:, 0][~seen].eq(torch.finfo(dtype).min).all()
    # As eager attention does it, after scores that would overflow if the mask were lower still.
    weights = torch.softmax(mask - 8, dim=-1)
    assert not weights.isnan().any()
    assert weights[:, 0][~seen].eq(0).all()


def test_everything_stays_on_the_device_of_the_input() -> None:
    (row,) = pack([[1, 2, 3], [1, 2, 4]], [1, 1], 8)
    away = dataclasses.replace(
        row, **{name: getattr(row, name).to("meta") for name in ("tokens", "depth", "subtree_end")}
    )
    (batch,) = batches([away], 8)
    assert {batch.input_ids.device.type, batch.position_ids.device.type, batch.subtree_end.device.type} == {"meta"}
    seen = visible(batch.subtree_end, batch.position_ids, window=2, chunk=2)
    assert additive_mask(seen, torch.float32).device.type == "meta"


# End to end


def packed_logits(model: PreTrainedModel, batch: Batch, window: int | None) -> Tensor:
    """Run a batch of packed rows."""
    seen = visible(batch.subtree_end, batch.position_ids, window=window)
    mask = additive_mask(seen, torch.float64)
    logits = model(batch.input_ids, attention_mask=mask, position_ids=batch.position_ids, use_cache=False).logits
    assert isinstance(logits, Tensor)
    return logits


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("window", [None, 5])
@torch.no_grad()
def test_packed_logits_equal_those_of_single_rows(
    window: int | None, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Eager attention computes its softmax in float32 whatever the model's dtype, which would hide errors below 1e-5.
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda scores, dim, dtype: torch.softmax(scores, dim))
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "attn_implementation": attention,
    }
    model: PreTrainedModel = (
        LlamaForCausalLM(LlamaConfig(**shape))
        if window is None
        else MistralForCausalLM(MistralConfig(**shape, sliding_window=window))
    )
    model.double().eval()
    rng = random.Random(0)

    def tokens(low: int, high: int) -> list[int]:
        return [rng.randrange(50) for _ in range(rng.randint(low, high))]

    shots = tokens(12, 12)
    contexts = [shots + tokens(3, 12) for _ in range(4)] + [tokens(4, 20)]
    sequences = [context + tokens(1, 6) for context in contexts for _ in range(3)]
    sequences += [sequences[0], contexts[1], tokens(1, 1)]
    tails = [rng.randint(1, len(sequence)) for sequence in sequences]

    compared = 0
    for batch in batches(pack(sequences, tails, 48), 100):
        logits = packed_logits(model, batch, window)
        assert logits.isfinite().all()
        for index, row in enumerate(batch.rows):
            for member, tail in zip(row.members, row.tails, strict=True):
                plain = model(torch.tensor([sequences[member]]), use_cache=False).logits[0, -tails[member] :]
                torch.testing.assert_close(logits[index, tail], plain, rtol=0, atol=1e-10)
                compared += 1
    assert compared == len(sequences)
