"""A model's modules without its weights: what its configuration alone says of its layers.

Knows configurations of transformers. Knows nothing of boosters or of targets.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError

from aft_harness.errors import ModelError
from aft_harness.text import reason

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

    from aft_harness.boosters.model_identity import ModelIdentity

FAILURES = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    AssertionError,
    RuntimeError,
    ImportError,
    StrictDataclassError,
)
"""What transformers raises of configurations and models that it cannot make sense of."""


def read_config(model: str | Path, label: str = "", revision: str | None = None) -> PreTrainedConfig:
    """The configuration of a folder or hub id; code that comes with a model is not run.

    Args:
        model: The folder or hub id.
        label: What messages call it; the same by default.
        revision: Of a model on the hub; its main branch by default.

    Raises:
        ModelError: There is none, or transformers does not know its kind.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(model), revision=revision or "main", trust_remote_code=False)
    except FAILURES as error:
        why = reason(error, sentence=True)
        raise ModelError(
            f"{label or model}: has no configuration that can be read ({type(error).__name__}: {why})"
        ) from None


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """The causal language model of a configuration, on the device `meta`: modules and shapes, no numbers.

    Raises:
        ModelError: The configuration is of no causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except FAILURES as error:
        why = reason(error, sentence=True)
        raise ModelError(f"no causal language model of type {config.model_type}: {why}") from None


def recorded_kind(recorded: ModelIdentity | None) -> PreTrainedModel:
    """A skeleton of the kind of model that a booster names as its base, with as many layers, of any width.

    Raises:
        ModelError: The booster names none, or one that transformers does not know.
    """
    import transformers

    name = recorded.architecture if recorded else ""
    kind: Any = getattr(transformers, name, None) if name.isidentifier() else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel) and recorded):
        raise ModelError("the booster does not say which kind of model it is for; name the model")
    configuration: Any = kind.config_class
    return skeleton(configuration(num_hidden_layers=recorded.layers))


def with_layers(config: PreTrainedConfig, count: int) -> PreTrainedConfig:
    """A copy of a configuration with its first decoder layers only."""
    shortened = copy.deepcopy(config)
    text = shortened.get_text_config(decoder=True)
    whole = text.num_hidden_layers
    for name, value in text.to_dict().items():
        if isinstance(value, list) and len(value) == whole:  # what each layer is
            setattr(text, name, value[:count])
    text.num_hidden_layers = count
    return shortened


def invented(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model of a configuration with random weights.

    Raises:
        ModelError: The configuration is of no causal language model.
    """
    from transformers import AutoModelForCausalLM

    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except FAILURES as error:
        why = reason(error, sentence=True)
        raise ModelError(f"no causal language model of type {config.model_type}: {why}") from None
    return model.eval()
