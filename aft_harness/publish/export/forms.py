"""The forms in which a checkpoint can have a booster as biases, and which one fits a model.

Knows configurations of transformers. That a form is exact is measured by `site.py`. Knows no files.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from transformers import LlamaConfig, PreTrainedConfig

from aft_harness.engine.skeleton import FAILURES
from aft_harness.errors import ExportError
from aft_harness.publish.export.site import Site, find_site

SWITCHES = ("mlp_bias", "use_bias", "bias")
"""Settings of configurations that give linear layers biases, the narrowest first."""

AS_LLAMA = "as Llama"
NATIVE = "native biases"


@dataclass(frozen=True)
class Form:
    """How a checkpoint expresses the booster.

    Attributes:
        name: `native biases`, the setting that gives the model biases, or `as Llama`.
        config: Of the model with biases.
        site: Where they are.
    """

    name: str
    config: PreTrainedConfig
    site: Site


def fitting_form(config: PreTrainedConfig, layers: Sequence[int]) -> Form:
    """The form for a model.

    Args:
        config: Of the model.
        layers: That the booster steers.

    Raises:
        ExportError: With the reason why there is none, and the way out.
    """
    if config.get_text_config(decoder=True) is not config:
        raise ExportError(f"{config.model_type} is more than a language model, and cannot be rewritten")
    site = find_site(config, layers)
    if site.has_bias:
        return Form(NATIVE, config, site)
    tried: list[tuple[str, PreTrainedConfig]] = []
    for switch in SWITCHES:
        if getattr(config, switch, None) is False:
            with suppress(*FAILURES):  # settings that exclude each other
                tried.append((switch, _switched(config, switch)))
    if config.model_type != "llama":
        with suppress(*FAILURES):  # settings that no Llama may have
            tried.append((AS_LLAMA, as_llama(config)))
    for name, target in tried:
        try:
            site = find_site(config, layers, target)
        except ExportError:
            continue
        if site.has_bias:
            return Form(name, target, site)
    window = getattr(config, "sliding_window", None)
    windowed = f" (which has no attention window, here of {window} tokens)" if window else ""
    raise ExportError(
        f"models of type {config.model_type} have no bias at {site.name}, no setting that gives them one, and do not "
        f"compute what a Llama does{windowed}; export an adapter with `aft export peft`, or run the booster with "
        "`--model steered-hf`"
    )


def as_llama(config: PreTrainedConfig) -> LlamaConfig:
    """The configuration of a Llama with the same settings and with all the biases that a Llama can have."""
    known = set(LlamaConfig().to_dict()) - {"model_type", "architectures", "transformers_version"}
    settings = {name: value for name, value in config.to_dict().items() if name in known}
    return LlamaConfig(**{**settings, "attention_bias": True, "mlp_bias": True, "architectures": ["LlamaForCausalLM"]})


def _switched(config: PreTrainedConfig, switch: str) -> PreTrainedConfig:
    changed = copy.deepcopy(config)
    setattr(changed, switch, True)
    type(config).from_dict(changed.to_dict())  # as whoever loads the export will, which checks it
    return changed
