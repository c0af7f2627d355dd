from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aft_harness.errors import ParseError
from aft_harness.slices import ALL, Slice, SplitSlice

NUMBERS = st.integers(0, 30)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("400:1188", Slice(400, 1188)),
        ("400:", Slice(400)),
        (":100", Slice(0, 100)),
        (":", ALL),
        ("5:5", Slice(5, 5)),
        ("0:0", Slice(0, 0)),
    ],
)
def test_documents_by_id(text: str, expected: Slice) -> None:
    assert Slice.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "5", "a:b", "-1:3", "1:-3", "1:2:3", "[1:2]", "1.5:2", " 1:2", "1,2", "1:2\n", "٣:٤", f"{'9' * 5000}:"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ParseError, match="is not a slice of documents; expected A:B") as caught:
        Slice.parse(text)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


@given(start=NUMBERS, stop=st.none() | NUMBERS, size=NUMBERS)
def test_a_slice_is_that_of_python(start: int, stop: int | None, size: int) -> None:
    part, items = Slice(start, stop), list(range(size))
    assert list(part.of(items)) == items[start:stop] == [item for item in items if item in part]
    assert Slice.parse(str(part)) == part


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train", SplitSlice("train")),
        ("train[:]", SplitSlice("train")),
        ("test[0:100]", SplitSlice("test", Slice(0, 100))),
        ("validation[50:]", SplitSlice("validation", Slice(50))),
        ("my-split.v2[:7]", SplitSlice("my-split.v2", Slice(0, 7))),
    ],
)
def test_rows_of_a_split(text: str, expected: SplitSlice) -> None:
    assert SplitSlice.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "[0:5]", "test[5", "test[5]", "test[]", "test[a:b]", "test[1:2][3:4]", "te st", f"test[{'9' * 19}:]"]
)
def test_other_rows_are_refused(text: str) -> None:
    with pytest.raises(ParseError, match=r"does not name rows of a split; expected SPLIT or SPLIT\[A:B\]"):
        SplitSlice.parse(text)
