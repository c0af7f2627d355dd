"""The models, boosters and requests that are measured. Knows the embedded model and lm-eval's tasks; times nothing."""

from __future__ import annotations

import tempfile
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from timing import Groups

LAYER = 15
"""The decoder layer that is steered."""


@cache
def model(kind: str, dtype: str) -> Any:
    """The embedded model as one of lm-eval's model types; `steered` has the vector of `booster`, the others none."""
    import torch
    from lm_eval.api.registry import get_model

    from aft_harness.demo import model_folder

    arguments: dict[str, Any] = {"pretrained": str(model_folder()), "dtype": dtype, "batch_size": 16, "device": "cpu"}
    arguments["softmax_dtype"] = "float32"
    if kind != "steered":
        return get_model(kind)(**arguments)
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        entry = {"steering_vector": _vector(), "steering_coefficient": 1.0, "action": "add", "bias": None}
        torch.save({f"layers.{LAYER}": {**entry, "head_index": None}}, file.name)
        return get_model(kind)(steer_path=file.name, **arguments)


def booster(seed: int = 0) -> Any:
    """A booster of one random vector."""
    from aft_harness.boosters.booster import Booster

    return Booster.static({LAYER: _vector(seed)})


def many(count: int) -> list[Any]:
    """So many variants, of as many boosters."""
    from aft_harness.boosters.variant import Variant

    return [Variant(f"random {seed}", booster(seed)) for seed in range(count)]


def _vector(seed: int = 0) -> Any:
    import torch

    return 0.3 * torch.randn(576, generator=torch.Generator().manual_seed(seed))


@cache
def requests(task: str, shots: int, docs: int, sampler: str = "default") -> tuple[list[Any], Groups]:
    """lm-eval's requests of the first documents of a task, and which of them belong to each document."""
    from lm_eval.api.samplers import get_sampler

    from aft_harness.harness.tasks import FEWSHOT_SEED, Tasks

    loaded = Tasks().leaves([task])[task]
    if sampler != "default":
        loaded.sampler = get_sampler(sampler)(list(loaded.fewshot_docs()))
    loaded.set_config("num_fewshot", shots)
    loaded.set_fewshot_seed(FEWSHOT_SEED)
    loaded.build_all_requests(limit=docs)
    groups, start = [], 0
    for _, doc in loaded.doc_iterator(limit=docs):
        lengths = [len(choice) for choice in loaded.doc_to_choice(doc)] if loaded.config.doc_to_choice else [1]
        groups.append((start, start + len(lengths), lengths))
        start += len(lengths)
    return loaded.instances, groups
