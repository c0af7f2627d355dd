"""Loading an exported checkpoint as plain transformers does, and comparing it with the steered base.

Knows models on disk and steering. Two models are never in memory at once.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from aft_harness.boosters.booster import Booster
from aft_harness.engine.skeleton import FAILURES
from aft_harness.engine.steering import Steering
from aft_harness.errors import ExportError
from aft_harness.text import reason

ALLOWED = 1e-4
"""Largest difference of logits in float32, in units of the largest logit: what the order of additions does."""

_TOKENS = 24


def verified(base: Path, exported: Path, vectors: Mapping[int, Tensor]) -> tuple[float, float]:
    """The largest difference of logits between an export and the steered base, and how far the booster moves them.

    Args:
        base: The base's folder.
        exported: The export's.
        vectors: What it should add to the output of each layer, [hidden].

    Raises:
        ExportError: It cannot be loaded, lacks a weight, or computes something else.
    """
    model = _loaded(base)
    plain = _logits(model)
    with Steering(model, Booster.static(vectors)):
        expected = _logits(model)
    del model
    gc.collect()
    found = _logits(_loaded(exported))
    difference, effect = (float((expected - other).abs().max()) for other in (found, plain))
    allowed = ALLOWED * float(expected.abs().max())
    if not difference <= allowed or (effect > allowed and not difference < effect / 10):
        raise ExportError(
            f"the export does not compute what the steered model does: its logits differ by {difference:.2g} where "
            f"{allowed:.2g} is allowed and the booster's effect is {effect:.2g}; nothing was written"
        )
    return difference, effect


def _loaded(folder: Path) -> PreTrainedModel:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        load: Any = AutoModelForCausalLM.from_pretrained  # whose type knows nothing of the report
        model, report = load(folder, dtype=torch.float32, output_loading_info=True)
    except FAILURES as error:
        why = reason(error)
        raise ExportError(f"the model cannot be loaded to verify the export ({why}); see --no-verify") from None
    finally:
        logging.set_verbosity(verbosity)
    if wrong := sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in report[kind]):
        raise ExportError(f"the model lacks weights when it is loaded: {', '.join(wrong)[:300]}")
    loaded: PreTrainedModel = model.eval()
    return loaded


def _logits(model: PreTrainedModel) -> Tensor:
    """Of a few tokens from all over the vocabulary, the same at every call."""
    size = int(model.config.get_text_config(decoder=True).vocab_size)
    tokens = (torch.arange(_TOKENS) * (size // _TOKENS) + 1).clamp(max=size - 1)[None]
    with torch.no_grad():
        return model(tokens, use_cache=False).logits.float()
