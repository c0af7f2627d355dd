"""Hidden states that are computed once and read many times: in memory up to a limit, in a file beyond it.

Knows tensors and bytes; what they mean is the caller's business.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Self

import torch
from torch import Tensor

from aft_harness.errors import FileError


@dataclass
class _Memory:
    """Bytes that some stores may keep together, and that they keep."""

    limit: int
    kept: int = 0


class HiddenStates:
    """An append-only list of tensors, a context manager.

    The file beyond the limit has no name where the system allows that, so that nothing is left behind even by a process
    that is killed.
    """

    def __init__(self, limit: int) -> None:
        """Makes an empty store.

        Args:
            limit: Bytes kept in memory (on the device of the tensors); what comes after goes to disk.
        """
        self._memory = _Memory(limit)
        self._states: list[Tensor | tuple[int, torch.Size, torch.dtype, torch.device]] = []
        self._file: IO[bytes] | None = None

    def beside(self) -> HiddenStates:
        """Another empty store; the limit is that of both together."""
        other = HiddenStates(0)
        other._memory = self._memory
        return other

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._states)

    def append(self, state: Tensor) -> None:
        """Adds a tensor; it must not be changed afterwards."""
        state = state.detach().contiguous()
        size = state.numel() * state.element_size()
        if self._memory.kept + size <= self._memory.limit:
            self._memory.kept += size
            self._states.append(state.clone())  # a view would keep the whole batch alive
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="aft_states_")  # noqa: SIM115 (closed by __exit__)
            offset = self._file.seek(0, 2)
            self._file.write(state.cpu().view(torch.uint8).numpy().tobytes())
        except OSError as error:
            raise FileError(f"hidden states cannot be kept in a temporary file ({error.strerror or error})") from None
        self._states.append((offset, state.shape, state.dtype, state.device))

    def __getitem__(self, index: int) -> Tensor:
        """The tensor that was added as the `index`-th, on its device."""
        state = self._states[index]
        if isinstance(state, Tensor):
            return state
        offset, shape, dtype, device = state
        assert self._file is not None
        self._file.seek(offset)
        data = bytearray(self._file.read(shape.numel() * dtype.itemsize))
        return torch.frombuffer(data, dtype=dtype).view(shape).to(device)

    def __enter__(self) -> Self:
        """Returns the store."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drops everything."""
        self._states.clear()
        if self._file is not None:
            self._file.close()
