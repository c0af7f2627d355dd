"""Everything but the request that an answer depends on: what a cache of answers must have been written with.

Knows the attributes of lm-eval's `HFLM`, models and tokenizers of Hugging Face. Looks nothing up and refuses nothing.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

from aft_harness.boosters.model_identity import ModelIdentity
from aft_harness.boosters.variant import Variant
from aft_harness.digests import digest
from aft_harness.versions import versions

_ATTRIBUTES = (
    "add_bos_token",
    "chat_template_args",
    "delta",
    "enable_thinking",
    "layers_path",
    "max_length",
    "mixed_precision_dtype",
    "packing",
    "peft",
    "prefix_token_id",
    "softmax_dtype",
    "think_end_token",
    "truncation",
)
"""Attributes of the model type that change an answer."""

_PACKAGES = ("lm_eval", "transformers")

_THIS_PROCESS = uuid.uuid4().hex


def answer_settings(lm: Any) -> dict[str, str]:
    """What an answer of a model type depends on beside its model and booster, by name.

    Args:
        lm: A `SteeredHFLM`.
    """
    config, found = lm.model.config, versions()
    return {
        **{name: str(getattr(lm, name, None)) for name in _ATTRIBUTES},
        **{name: found[name] for name in _PACKAGES},
        "attention": str(getattr(config, "_attn_implementation", None)),
        "chat_template": _short(getattr(lm.tokenizer, "chat_template", None)),
        "generation_defaults": _short(_generation_defaults(lm.model)),
        "quantization": _short(_plain(getattr(config, "quantization_config", None))),
        "tokenizer": tokenizer_identity(lm.tokenizer),
    }


def tokenizer_identity(tokenizer: Any) -> str:
    """A tokenizer's class and a digest of all that decides which tokens a text becomes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        held = json.loads(backend.to_str())
        # Set by each call, from its arguments.
        content = {name: part for name, part in held.items() if name not in ("padding", "truncation")}
    else:
        content = {
            "vocabulary": tokenizer.get_vocab(),
            "added": {str(token): index for token, index in getattr(tokenizer, "added_tokens_encoder", {}).items()},
        }
    content["special"] = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return f"{type(tokenizer).__name__} {digest(content)[:12]}"


def cache_identity(model: ModelIdentity, dtype: str, variant: Variant, settings: Mapping[str, str]) -> str:
    """The identity of answers, as JSON.

    Args:
        model: Which model answers.
        dtype: Of its weights.
        variant: How it is steered.
        settings: From `answer_settings`.
    """
    return json.dumps(
        {
            # Of two models whose weights cannot be read nobody knows that they are one.
            "model": model.fingerprint or f"unknown {_THIS_PROCESS}",
            "name": model.name,
            "revision": model.revision,
            "dtype": dtype,
            "booster": variant.booster.sha256 if variant.booster else None,
            "strength": variant.strength if variant.booster else None,
            "settings": dict(settings),
        },
        sort_keys=True,
    )


def differences(written: object, present: str) -> list[str]:
    """What tells two identities apart, in words; empty where nothing is known of the first.

    Args:
        written: Of the answers that are there.
        present: Of those that would be added.
    """
    try:
        before, after = _flat(json.loads(str(written))), _flat(json.loads(present))
    except (ValueError, TypeError, AttributeError, KeyError):
        return []
    kind = "model_type"  # each has settings of its own
    if kind in before and kind in after and before[kind] != after[kind]:
        return [f"{before[kind]}, not {after[kind]}"]
    if before.keys() != after.keys():
        return []
    return [
        f"{name.replace('_', ' ')} {_shown(name, before)}, not {_shown(name, after)}"
        for name in after
        if before[name] != after[name] and not (name == "name" and before["model"] == after["model"])
    ]


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {**{name: value for name, value in identity.items() if name != "settings"}, **identity["settings"]}


def _shown(name: str, identity: Mapping[str, Any]) -> str:
    value = identity[name]
    if name == "model":
        return f"{identity['name']} ({str(value)[:12]})"
    if value is None:
        return "none"
    return str(value)[:12] if name == "booster" else str(value)


def _generation_defaults(model: Any) -> Any:
    defaults = getattr(model, "generation_config", None)
    if defaults is None:
        return None
    ignored = ("transformers_version", "_from_model_config")
    return {name: value for name, value in defaults.to_diff_dict().items() if name not in ignored}


def _plain(config: Any) -> Any:
    return config.to_dict() if hasattr(config, "to_dict") else config


def _short(value: object) -> str:
    return "none" if value is None else digest(value)[:12]
