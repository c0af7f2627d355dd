"""Adapters of PEFT that are biases and nothing else: BEFT, and LoRA whose matrices multiply to zero.

Knows PEFT's two files. Whether a bias inside a layer equals a vector added to its output depends on the model, see
`Foreign.modules`.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from torch import Tensor

from aft_harness.errors import BoosterError
from aft_harness.publish.imports.foreign import Foreign, checked_vector, layer_number
from aft_harness.text import printable

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BEFT, LORA = "PEFT BEFT adapter", "PEFT LoRA adapter"

LAST_LINEARS = ("down_proj", "fc2", "c_proj", "dense_4h_to_h", "fc_out", "w2")
"""Names that the last linear of an MLP bears; which of them it is in a model, the model itself decides."""

_KEY = re.compile(
    r"base_model\.model\.(?P<module>(?:\w+\.)*(?:layers|h|blocks)\.(?P<layer>0|[1-9][0-9]*)\.(?P<inner>\w+(?:\.\w+)*))"
    r"\.(?P<part>beft_bias|lora_A\.weight|lora_B\.weight|lora_B\.bias)",
    re.ASCII,
)


def read(config: bytes, weights: bytes, origin: Mapping[str, Any]) -> Foreign:
    """Reads an adapter.

    Args:
        config: The bytes of `adapter_config.json`.
        weights: Those of `adapter_model.safetensors`.
        origin: What `aft_export.json` beside them says, if anything.

    Raises:
        BoosterError: It changes weights, other modules than the last linear of an MLP, or is damaged.
    """
    settings = _settings(config)
    kind = settings.get("peft_type")
    if kind not in ("BEFT", "LORA"):
        raise BoosterError(
            f"is a PEFT adapter of type {printable(kind)}; only biases can be a booster: BEFT, or LoRA with lora_bias"
        )
    parts: dict[tuple[int, str], dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in _tensors(weights).items():
        match = _KEY.fullmatch(name)
        if match is None or match["inner"].split(".")[-1] not in LAST_LINEARS:
            raise BoosterError(
                f"changes {printable(name)}; a booster is a bias of the last linear of an MLP, such as mlp.down_proj"
            )
        parts[layer_number(match["layer"], name), match["inner"]][match["part"]] = tensor
    vectors: dict[int, Tensor] = {}
    modules: dict[int, str] = {}
    for (layer, inner), found in parts.items():
        if layer in vectors:
            raise BoosterError(f"changes two modules of layer {layer}: {modules[layer]} and {inner}")
        vectors[layer] = _beft(found, inner) if kind == "BEFT" else _lora(found, inner, settings)
        modules[layer] = inner
    return Foreign(BEFT if kind == "BEFT" else LORA, vectors, modules, origin)


def _settings(config: bytes) -> dict[str, Any]:
    try:
        settings = json.loads(config)
    except (ValueError, RecursionError) as error:
        raise BoosterError(f"{CONFIG} is not JSON ({printable(error)})") from None
    if not isinstance(settings, dict):
        raise BoosterError(f"{CONFIG} is not a JSON object")
    if settings.get("modules_to_save"):
        raise BoosterError("replaces whole modules (modules_to_save), which a booster cannot")
    return settings


def _tensors(weights: bytes) -> dict[str, Tensor]:
    try:
        return tensors_of(weights)
    except (SafetensorError, KeyError, ValueError, TypeError, OverflowError) as error:  # KeyError: a type torch has not
        raise BoosterError(f"{WEIGHTS} is damaged ({printable(error)})") from None


def _beft(found: Mapping[str, Tensor], name: str) -> Tensor:
    if set(found) != {"beft_bias"}:
        raise BoosterError(f"{name}: a BEFT adapter has beft_bias, not {', '.join(sorted(found))}")
    bias = found["beft_bias"]
    return checked_vector(bias[0] if bias.dim() == 2 and len(bias) == 1 else bias, f"{name}.beft_bias")


def _lora(found: Mapping[str, Tensor], name: str, settings: Mapping[str, Any]) -> Tensor:
    if "lora_B.bias" not in found:
        raise BoosterError(f"{name}: a LoRA adapter without lora_bias changes weights; a booster is a bias")
    if not all(tensor.is_floating_point() for tensor in found.values()):
        raise BoosterError(f"{name}: holds tensors that are not of floating-point numbers")
    # One matrix of zeros is enough, as long as the other one is finite.
    matrices = [found[part].double() for part in ("lora_A.weight", "lora_B.weight") if part in found]
    if len(matrices) == 2 and not any(m.isfinite().all() and not m.any() for m in matrices):
        raise BoosterError(f"{name}: the LoRA adapter changes weights (its matrices are not zero); a booster is a bias")
    return checked_vector(checked_vector(found["lora_B.bias"], f"{name}.lora_B.bias") * _scaling(settings), name)


def _scaling(settings: Mapping[str, Any]) -> float:
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    for value in (rank, alpha):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < abs(value) < 2**31:
            raise BoosterError(f"{CONFIG}: r and lora_alpha must be numbers")
    if settings.get("rank_pattern") or settings.get("alpha_pattern"):
        raise BoosterError(f"{CONFIG}: ranks that differ by module (rank_pattern, alpha_pattern) cannot be read")
    assert isinstance(rank, int | float) and isinstance(alpha, int | float)
    if rank < 0:
        raise BoosterError(f"{CONFIG}: r must be positive")
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank
