"""A small random model of the same kind as a large one: as deep, very narrow, and with the same settings otherwise.

Knows configurations and modules of transformers. Knows nothing of boosters, files or targets.
"""

from __future__ import annotations

import copy

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from aft_harness.engine.skeleton import FAILURES
from aft_harness.errors import ExportError
from aft_harness.text import reason

VOCABULARY = 97
TOKENS = 12
"""Of the text that miniatures are run on."""

_INNER, _EXPERTS = 48, 16
_WINDOW = 4  # shorter than the text, so that a window shows in it
_INNER_SIZES = (
    "intermediate_size",
    "ffn_dim",
    "ffn_hidden_size",
    "n_inner",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
)


def shrunk(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of a miniature.

    Heads keep their size, which rotary embeddings depend on. An attention window that has an effect within the model's
    longest text becomes one that has an effect in a few tokens.
    """
    small = copy.deepcopy(config)
    vars(small).pop("quantization_config", None)
    text = small.get_text_config(decoder=True)
    hidden, heads = int(text.hidden_size), getattr(text, "num_attention_heads", None)
    head = hidden // heads if heads else 32
    fewer = 4 if head <= 80 else 2
    for name in ("num_key_value_heads", "num_kv_heads"):
        if (groups := getattr(text, name, None)) is not None:
            setattr(text, name, fewer if groups == heads else fewer // 2)
    if (projected := getattr(text, "word_embed_proj_dim", None)) is not None:
        text.word_embed_proj_dim = fewer * head if projected == hidden else _INNER
    if heads:
        text.num_attention_heads = fewer
    text.hidden_size = fewer * head
    for name in _INNER_SIZES:
        if getattr(text, name, None) is not None:
            setattr(text, name, _INNER)
    for name in ("num_experts", "num_local_experts", "n_routed_experts"):
        if count := getattr(text, name, None):
            setattr(text, name, min(count, _EXPERTS))
    longest = getattr(text, "max_position_embeddings", None)
    for name in ("sliding_window", "attention_chunk_size"):
        window = getattr(text, name, None)
        if window is not None and (longest is None or window < longest):
            setattr(text, name, _WINDOW)
    for name in ("vocab_size", "vocab_size_per_layer_input"):
        if hasattr(text, name):
            setattr(text, name, VOCABULARY)
    for each in (small, text):
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if getattr(each, name, None) is not None:
                setattr(each, name, 0)
    return small


def miniature(config: PreTrainedConfig) -> PreTrainedModel:
    """A random model of a configuration's kind, in float64, the same at every call.

    No weight keeps the zero or one that it starts with, which could hide what it does.

    Raises:
        ExportError: None could be made.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            small = shrunk(config)
            small._experts_implementation = "eager"  # the faster ones know no float64
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                small, dtype=torch.float64, attn_implementation="eager", trust_remote_code=False
            )
        except FAILURES as error:
            why = reason(error)
            raise ExportError(f"{config.model_type}: no small model of this kind can be made ({why})") from None
        with torch.no_grad():
            for _, parameter in sorted(model.named_parameters()):
                noise = torch.randn_like(parameter)
                if parameter.dim() > 1:
                    parameter.copy_(noise / parameter.shape[-1] ** 0.5)
                else:
                    parameter.add_(0.2 * noise)
    return model.eval()


def with_weights_of(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """A miniature of another configuration with the weights of `model`; biases that only it has are zero.

    Raises:
        ExportError: None could be made, or the two kinds have different weights.
    """
    other, state = miniature(config), model.state_dict()
    further = {name: torch.zeros_like(value) for name, value in other.state_dict().items() if name not in state}
    try:
        if not all(name.endswith(".bias") for name in further):
            raise ValueError
        other.load_state_dict({**state, **further})
    except FAILURES:
        raise ExportError(f"{model.config.model_type} and {config.model_type} have different weights") from None
    return other


def logits(model: PreTrainedModel) -> torch.Tensor:
    """Of a short text, [1, tokens, vocabulary], the same for every miniature."""
    tokens = torch.randint(1, VOCABULARY, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(tokens, use_cache=False).logits
