"""Opening a model by what a user calls it: a hub id, a folder, a GGUF file, or a loaded model, which is left as it was.

Knows the model types `steered-hf` and `steered-gguf`, and how a loaded model is handed over.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from aft_harness.engine.decoder import input_device
from aft_harness.engine.gguf_file import is_gguf
from aft_harness.errors import ModelError
from aft_harness.harness.gguf import SteeredGgufLM
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.shared_pass import SteeredLM

DEFAULT_BATCH_SIZE = 16
"""Rows per forward pass."""

Model = str | Path | nn.Module
"""A hub id, a folder, or a loaded transformers model."""


@contextmanager
def opened(
    model: Model,
    tokenizer: Any = None,
    *,
    dtype: str = "auto",
    batch_size: int | str = DEFAULT_BATCH_SIZE,
    **model_args: Any,
) -> Iterator[SteeredHFLM]:
    """Opens a model as the lm-eval model type that every function here uses; leaves an already loaded model unchanged.

    Args:
        model: A hub id, a folder, or a loaded model.
        tokenizer: Tokenizer of a loaded model.
        dtype: Data type of the weights if the model is loaded here; `auto` means as in the checkpoint.
        batch_size: Rows per forward pass, or `auto`.
        **model_args: Additional arguments of `--model steered-hf`, such as `device`, `revision`, `trust_remote_code`.

    Raises:
        ModelError: The model cannot be loaded or steered.
    """
    if is_gguf(model):
        raise ModelError(f"{model}: a GGUF file can only be evaluated; name the checkpoint that it was made from")
    if not isinstance(model, nn.Module):
        yield SteeredHFLM(str(model), dtype=dtype, batch_size=batch_size, tokenizer=tokenizer, **model_args)
        return
    if tokenizer is None:
        raise ModelError(f"a loaded {type(model).__name__} also needs its tokenizer; pass tokenizer=")
    modes = [(module, module.training) for module in model.modules()]
    model_args.setdefault("device", str(input_device(model)))
    try:
        # The tokenizer's padding is changed for scoring: that of a copy.
        yield SteeredHFLM(model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size, **model_args)  # type: ignore[arg-type]
    finally:
        for module, training_mode in modes:
            module.training = training_mode


@contextmanager
def opened_for_evaluation(model: Model, tokenizer: Any = None, **model_args: Any) -> Iterator[SteeredLM]:
    """Opens a model that nothing is learned from, which a GGUF file may be, too.

    Args:
        model: A hub id, a folder, a loaded model, or a `.gguf` file.
        tokenizer: Tokenizer of a loaded model; of a file, the checkpoint whose tokenizer must make the same tokens.
        **model_args: See `opened`; of a file, the arguments of `--model steered-gguf`.

    Raises:
        ModelError: The model cannot be loaded or steered.
    """
    if is_gguf(model):
        further = {} if tokenizer is None else {"tokenizer": tokenizer}
        yield SteeredGgufLM(str(model), **further, **model_args)
        return
    with opened(model, tokenizer, **model_args) as lm:
        yield lm
