"""In which order and batches texts are written: those of lm-eval's `hf`.

Knows lm-eval's requests. Knows nothing of models but how they tokenise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.utils import Collator

KEPT_AT_ONCE = 16
"""Texts that are generated before they are stored, where the batch size is found automatically."""

_BATCHES_A_CALL = 4
"""Batches of one call, after which texts are stored; within it, waiting texts take the place of finished ones."""


def batches(requests: Sequence[Instance], lm: Any, automatic: int) -> Iterator[list[int]]:
    """The places of requests, a call's together, in the order in which `hf` generates: its batches are whole.

    Args:
        requests: What is asked.
        lm: The model type.
        automatic: Requests of a call where the batch size is found automatically, which every call does anew.
    """
    size = _BATCHES_A_CALL * int(lm.batch_size) if lm.batch_size != "auto" else automatic
    ordered = Collator(
        [(place, *request.args) for place, request in enumerate(requests)],
        sort_fn=lambda asked: (-len(lm.tok_encode(asked[1])), asked[1]),
        group_by="gen_kwargs",
        group_fn=lambda asked: asked[2],
    )
    for batch in ordered.get_batched(n=size):
        yield [place for place, *_ in batch]


def is_sampled(request: Instance) -> bool:
    """Whether another text comes each time."""
    settings = request.args[1]
    return settings.get("do_sample") is True or (settings.get("temperature") or 0.0) > 0.0
