"""Which positions of a pass predict which tokens, and how likely tokens are there.

Knows batches of rows and logits. Runs no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from aft_harness.engine.rows import Batch

if TYPE_CHECKING:
    from aft_harness.engine.scoring import Request

# How many logits are raised to float32 at a time: a second copy of all would double the memory, and on a CPU one that
# does not fit its cache is four times slower.
LOGITS_AT_A_TIME = {"cpu": 2**20, "accelerator": 2**25}


@dataclass(frozen=True, slots=True)
class Predictions:
    """Which columns of a batch, seen as one long row, predict which tokens of which member.

    Attributes:
        members: Indices of the requests, in the order of the rows.
        columns: Where each token is predicted.
        targets: The tokens.
        owners: Places in `members` that they belong to.
    """

    members: tuple[int, ...]
    columns: Tensor
    targets: Tensor
    owners: Tensor

    @classmethod
    def of(cls, batch: Batch, requests: Sequence[Request]) -> Predictions:
        """Those of a batch whose members are indices of `requests`."""
        width = batch.input_ids.shape[1]
        members = tuple(member for row in batch.rows for member in row.members)
        columns = [tail + place * width for place, row in enumerate(batch.rows) for tail in row.tails]
        targets = [token for member in members for token in requests[member].continuation]
        lengths = torch.tensor([len(requests[member].continuation) for member in members])
        owners = torch.repeat_interleave(torch.arange(len(members)), lengths)
        return cls(members, torch.cat(columns), torch.tensor(targets), owners)

    def positions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Where anything is predicted, bool [rows, width], and which of those positions predicts each token."""
        keep = torch.zeros(batch.input_ids.shape, dtype=torch.bool)
        keep.view(-1)[self.columns] = True
        return keep, (keep.view(-1).cumsum(0) - 1)[self.columns]


def normalisers(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the sum of exponentials at each position, in at least float32, and the largest logit there."""
    precision = torch.promote_types(logits.dtype, torch.float32)
    parts = logits.split(rows_at_a_time(logits))
    return (
        torch.cat([part.to(precision).logsumexp(dim=-1) for part in parts]),
        torch.cat([part.detach().amax(dim=-1) for part in parts]),
    )


def rows_at_a_time(logits: Tensor) -> int:
    """How many positions are raised to float32 at a time."""
    size = LOGITS_AT_A_TIME["cpu" if logits.device.type == "cpu" else "accelerator"]
    return max(1, size // logits.shape[-1])
