"""Packed rows against plain rows: the same tokens, the same positions, the same visibility, the same logits."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedModel
from transformers.masking_utils import (
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)
from trie_cases import Drawn, for_all, paths, requests, widths

from aft_harness.engine.mask import additive_mask, visible
from aft_harness.engine.rows import Batch, batches, fitted, joined
from aft_harness.engine.trie import pack


@for_all(requests(), widths, st.integers(1, 100))
def test_batches_pad_right_and_lose_no_row(drawn: Drawn, width: int, max_tokens: int) -> None:
    rows = pack(drawn[0], drawn[1], width)
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

    for batch in batches(pack(drawn[0], drawn[1], width), 100):
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
