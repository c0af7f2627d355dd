"""The state of an interrupted training, in a file beside what it makes.

Knows injections, an optimiser and plain JSON. Nothing in the file is code; a file of another training is not used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.optim import Optimizer

from aft_harness.boosters.injections import Injection
from aft_harness.engine.processes import ALONE, Processes
from aft_harness.errors import AftError
from aft_harness.files import read_regular, write_atomically
from aft_harness.versions import installed

LIMIT = 2**30
"""Bytes that are read of a file at most."""


class Checkpoint:
    """A file that holds the state of one training."""

    def __init__(self, path: Path | None, training: str, processes: Processes = ALONE) -> None:
        """Nothing is read or written yet.

        Args:
            path: The file; None keeps nothing.
            training: Its identity, see `training_identity`. What another version of the package or of torch began is
                not gone on with: it would end as neither of them would have.
            processes: Of which the first reads and writes.
        """
        self._path, self._identity = path, [training, installed(), processes.count]
        self._processes = processes

    def save(
        self, injections: Mapping[int, Injection], adam: Optimizer, best: Mapping[str, Tensor], state: Mapping[str, Any]
    ) -> None:
        """Writes the state, whole or not at all.

        Args:
            injections: What is trained.
            adam: Its optimiser.
            best: Tensors of the epoch that is kept so far, by name.
            state: Everything else, as JSON knows it.
        """
        if self._path is None or self._processes.rank:
            return
        tensors = {f"now.{name}": tensor.detach() for name, tensor in named(injections).items()}
        tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
        for number, moments in adam.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": torch.as_tensor(value) for name, value in moments.items()}
        described = {"identity": self._identity, "state": state}
        data = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        write_atomically(self._path, save(data, {"aft": json.dumps(described)}))

    def load(
        self, injections: Mapping[int, Injection], adam: Optimizer
    ) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Puts what was saved into injections and optimiser; None where there is nothing of this very training.

        Returns:
            The state, and the tensors of the epoch that is kept so far.
        """
        data = self._processes.gathered(self._read())[0]
        if data is None:
            return None
        try:
            length = int.from_bytes(data[:8], "little")
            described = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["aft"])
            tensors = load(data)
        except (AftError, SafetensorError, ValueError, KeyError, TypeError):
            return None
        if described.get("identity") != self._identity:
            return None
        with torch.no_grad():
            for name, tensor in named(injections).items():
                tensor.copy_(tensors[f"now.{name}"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "adam":
                number, _, field = rest.partition(".")
                moments.setdefault(int(number), {})[field] = tensor
        adam.load_state_dict({**adam.state_dict(), "state": moments})
        best = {name.removeprefix("best."): tensor for name, tensor in tensors.items() if name.startswith("best.")}
        return dict(described["state"]), best

    def _read(self) -> bytes | None:
        if self._path is None or self._processes.rank:
            return None
        try:
            return read_regular(self._path, LIMIT)
        except AftError:
            return None


def named(injections: Mapping[int, Injection]) -> dict[str, Tensor]:
    """The tensors of injections by `LAYER.NAME`."""
    return {f"{layer}.{name}": tensor for layer, part in injections.items() for name, tensor in part.tensors.items()}


def copied(injections: Mapping[int, Injection]) -> dict[str, Tensor]:
    """Copies of the tensors of injections, by `LAYER.NAME`."""
    return {name: tensor.detach().clone() for name, tensor in named(injections).items()}


def restored(injections: Mapping[int, Injection], tensors: Mapping[str, Tensor]) -> dict[int, Injection]:
    """The injections with other tensors, as `copied` or `Checkpoint.load` gave them, on the devices of theirs."""
    return {
        layer: part.with_tensors({name: tensors[f"{layer}.{name}"].to(old) for name, old in part.tensors.items()})
        for layer, part in injections.items()
    }
