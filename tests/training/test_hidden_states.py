"""Hidden states in memory and on disk."""

from __future__ import annotations

import pytest
import torch

from aft_harness.errors import FileError
from aft_harness.training.hidden_states import HiddenStates


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("limit", [0, 100, 10**9])
def test_states_come_back_as_they_were(dtype: torch.dtype, limit: int) -> None:
    states = [torch.randn(length, 3).to(dtype) for length in (1, 5, 2, 7)]
    with HiddenStates(limit) as store:
        for state in states:
            store.append(state)
        for index in (2, 0, 3, 1, 1):
            assert torch.equal(store[index], states[index]) and store[index].dtype == dtype
        assert len(store) == 4


def test_memory_is_bounded_and_what_is_stored_is_not_a_view() -> None:
    batch = torch.ones(4, 1000)
    with HiddenStates(4000) as store:
        for row in batch:
            store.append(row[None])
        assert [isinstance(state, torch.Tensor) for state in store._states] == [True, False, False, False]
        batch.zero_()
        assert all(bool((store[index] == 1).all()) for index in range(4))
    assert len(store) == 0


def test_stores_beside_each_other_share_their_limit() -> None:
    with HiddenStates(4000) as store, store.beside() as other:
        for each in (store, other, store):
            each.append(torch.ones(600))
        assert [isinstance(state, torch.Tensor) for state in (*store._states, *other._states)] == [True, False, False]
        assert torch.equal(other[0], torch.ones(600))


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with HiddenStates(0) as states, pytest.raises(FileError, match=r"temporary file \(No space left on device"):
        states.append(torch.zeros(3))
