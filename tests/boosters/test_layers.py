from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aft_harness.boosters.layers import Layers, check_layer, ranges
from aft_harness.errors import AftError, ModelError, ParseError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("all", range(12)),
        ("middle", [6]),
        (8, [8]),
        ("8", [8]),
        ("0", [0]),
        ("8,11", [8, 11]),
        ("11, 8 ,8", [8, 11]),
        ("4-8", [4, 5, 6, 7, 8]),
        ("4-4", [4]),
        ("1-", range(1, 12)),
        ("0-2,5,9-", [0, 1, 2, 5, 9, 10, 11]),
        ("11-", [11]),
        ([1], [1]),
        ([4, 5, 6], [4, 5, 6]),
        ((9, 2), [2, 9]),
        (Layers("3"), [3]),
        (" all ", range(12)),
    ],
)
def test_the_grammar(value: Any, expected: Any) -> None:
    assert Layers.of(value).resolve(12) == tuple(expected)


def test_middle_is_half_way_up() -> None:
    assert [Layers.of("middle").resolve(count) for count in (1, 2, 3, 32)] == [(0,), (1,), (1,), (16,)]


def test_lists_are_written_in_their_shortest_form() -> None:
    assert str(Layers.of([6, 4, 5, 16])) == "4-6,16"
    assert str(Layers.of("8, 16")) == "8,16"
    assert Layers.of([3]) == Layers.of("3") == Layers.of(3)


@given(st.sets(st.integers(0, 40), min_size=1))
def test_ranges_and_grammar_are_each_others_inverse(layers: set[int]) -> None:
    assert Layers.of(ranges(layers)).resolve(41) == tuple(sorted(layers))


BAD = [
    "",
    " ",
    ",",
    "8,",
    "auto",
    "first",
    "8-4",
    "-1",
    "-",
    "1.5",
    "1--2",
    "all,8",
    "8;9",
    "٣x",
    "٣",
    "999999",
    [],
    [-1],
]
BAD_TYPES = [
    b"12",
    bytearray(b"1"),
    10**5,
    [10**5],
    [2**70],
    range(10**12),
    [1.5],
    ["8"],
    [True],
    True,
    None,
    1.5,
    {1},
    -1,
    {"8": 1},
]


@pytest.mark.parametrize("value", [*BAD, *BAD_TYPES], ids=repr)
def test_other_values_are_refused_in_one_line(value: Any) -> None:
    with pytest.raises(ParseError, match=r"^layers .*: expected all, ") as caught:
        Layers.of(value)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    assert isinstance(caught.value, AftError)


@pytest.mark.parametrize(("text", "layer"), [("12", 12), ("3,40", 40), ("8-15", 12), ("12-", 12), ("99-", 99)])
def test_layers_that_the_model_does_not_have_are_named(text: str, layer: int) -> None:
    layers = Layers.of(text)
    with pytest.raises(ModelError, match=f"^layer {layer} is out of range: the model has layers 0 to 11$"):
        layers.resolve(12)


def test_one_layer_is_checked() -> None:
    assert check_layer(3, 4) == 3
    for layer in (-1, 4):
        with pytest.raises(ModelError, match=f"layer {layer} is out of range"):
            check_layer(layer, 4)


def test_numbers_that_cannot_be_written_are_refused() -> None:
    for value in (10**5000, [10**5000]):
        with pytest.raises(ParseError, match=r"^layers of type (int|list): expected all"):
            Layers.of(value)
