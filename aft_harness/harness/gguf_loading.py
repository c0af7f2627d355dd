"""Arguments of `steered-gguf`, which model a file is, and what is tried before anything is scored.

Knows llama.cpp's settings and what must come out of a few tokens. Knows no requests.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch

from aft_harness.boosters.model_identity import ModelIdentity
from aft_harness.engine import control_vectors
from aft_harness.engine.llama import CACHE_TYPES, FLASH_ATTENTION, Llama, LlamaSettings
from aft_harness.errors import ModelError, ParseError

logger = logging.getLogger(__name__)

OWN = ("add_bos_token", "batch_size", "chat_template_args", "device", "max_gen_toks", "n_ctx", "packing", "pretrained")
FURTHER = ("scale", "tokenizer", "vector")

ONE_BY_ONE = 0.3
"""Nats that the probabilities of tokens that are read together may diverge by from those of tokens read one by one, in
quantised weights: rounding makes 0.05 at most of it in files of 4 bits, a kernel that is wrong some nats."""
ONE_BY_ONE_EXACT = 1e-3
"""The same for weights in float32."""
CACHE_COST = 0.25
"""Nats a token that a quantised cache may cost on average; more is another model."""

_SAMPLES, _SAMPLE = 64, 4096
_IGNORED = ("max_batch_size", "dtype", "trust_remote_code", "revision")  # lm-eval and commands give them to every type


def llama_settings(arguments: Mapping[str, Any], device: str | None = None) -> LlamaSettings:
    """How the file is run.

    Args:
        arguments: `n_threads`, `n_gpu_layers`, `flash_attn` (auto, on, off), `type_k`, `type_v`, `n_batch`, `repack`.
        device: `cpu` keeps all layers there.

    Raises:
        ParseError: An unknown argument, or a value that is none.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    for name, plain in (("dtype", "auto"), ("trust_remote_code", False), ("revision", "main")):
        if given.get(name, plain) != plain:
            raise ParseError(f"{name}={given[name]}: steered-gguf runs a file as it is, and has no {name}")
    given = {name: value for name, value in given.items() if name not in _IGNORED}
    known = [field.name for field in fields(LlamaSettings)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *OWN, *FURTHER], n=1)
            hint = f"; did you mean {near[0]}=?" if near else f"; it takes {', '.join([*OWN, *FURTHER, *known])}"
            raise ParseError(f"unknown argument {name!r} of steered-gguf{hint}")
    on_cpu = device is not None and str(device).startswith("cpu")
    if on_cpu and given.get("n_gpu_layers"):
        raise ParseError("device=cpu and n_gpu_layers cannot be used together")
    layers = 0 if on_cpu else given.get("n_gpu_layers")
    if layers is not None and (isinstance(layers, bool) or not isinstance(layers, int) or layers < -1):
        raise ParseError(f"n_gpu_layers={layers}: expected a number of layers, or -1 for all")
    return LlamaSettings(
        n_threads=positive("n_threads", given.get("n_threads", torch.get_num_threads())),
        n_gpu_layers=layers,
        flash_attn=_flash_attention(given.get("flash_attn")),
        type_k=_cache_type("type_k", given.get("type_k")),
        type_v=_cache_type("type_v", given.get("type_v")),
        n_batch=positive("n_batch", given.get("n_batch", LlamaSettings.n_batch)),
        repack=switch("repack", given["repack"]) if "repack" in given else None,
    )


def positive(name: str, value: object) -> int:
    """A whole number above 0.

    Raises:
        ParseError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ParseError(f"{name}={value}: expected a whole number above 0")
    return value


def batch_size(value: int | str) -> int | str:
    """A number of texts, or `auto`.

    Raises:
        ParseError: It is neither.
    """
    if isinstance(value, str):
        if value.split(":")[0] == "auto":
            return "auto"
        value = int(value) if value.isdigit() else value
    return positive("batch_size", value)


def switch(name: str, value: bool | str) -> bool:
    """On or off.

    Raises:
        ParseError: Neither.
    """
    if str(value).lower() in ("true", "on"):
        return True
    if str(value).lower() in ("false", "off"):
        return False
    raise ParseError(f"{name}={value}: expected on or off")


def _flash_attention(value: object) -> str | None:
    if value is None:
        return None
    named = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else str(value).lower()
    if named not in FLASH_ATTENTION:
        raise ParseError(f"flash_attn={value}: expected {', '.join(FLASH_ATTENTION)}")
    return str(named)


def _cache_type(name: str, value: object) -> str | None:
    if value is None or str(value).lower() in CACHE_TYPES:
        return None if value is None else str(value).lower()
    raise ParseError(f"{name}={value}: expected {', '.join(CACHE_TYPES)}")


def identify(model: Llama) -> ModelIdentity:
    """The identity of a file: its name without the folder, and a digest of its header and of samples of its data."""
    size = os.stat(model.path).st_size
    digest = hashlib.sha256(str(size).encode())
    with model.path.open("rb") as file:
        digest.update(file.read(2**20))
        for sample in range(_SAMPLES):
            file.seek(sample * max(0, size - _SAMPLE) // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE))
    return ModelIdentity(
        name=model.path.stem,
        fingerprint=digest.hexdigest(),
        architecture=model.metadata("general.architecture") or "",
        layers=model.layers,
        hidden_size=model.width,
    )


def check(model: Llama, tokens: Sequence[int]) -> None:
    """Tries what could be wrong without a word: kernels for many tokens, and quantised keys and values.

    Args:
        model: The file.
        tokens: Of a sentence.

    Raises:
        ModelError: A result is not what it must be.
    """
    tolerance = ONE_BY_ONE_EXACT if model.weights == "F32" else ONE_BY_ONE
    control_vectors.check_one_by_one(model, tokens, tolerance)
    quantised = {name for name in (model.type_k, model.type_v) if name.startswith(("q", "iq"))}
    if not quantised:
        return
    reference = model.sibling(replace(model.settings, type_k="f16", type_v="f16"))
    try:
        cost = control_vectors.distance(model, reference, tokens)
    finally:
        reference.close()
    if not cost <= CACHE_COST:
        raise ModelError(
            f"type_k={model.type_k}, type_v={model.type_v}: loglikelihoods differ by {cost:.2g} nats a token from "
            "those with f16; use q8_0 or f16"
        )
    logger.info("type_k=%s, type_v=%s: %.2g nats a token from f16", model.type_k, model.type_v, cost)
