"""Loads a model folder that a current transformers wrote with an older one, which the peers' packages need."""

import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast


def model(folder, dtype=torch.float32):
    """The model; older releases know the rotary base by another name, and would take their own default silently."""
    config = AutoConfig.from_pretrained(folder)
    rope = json.loads((Path(folder) / "config.json").read_text()).get("rope_parameters", {})
    if "rope_theta" in rope:
        config.rope_theta = rope["rope_theta"]
    return AutoModelForCausalLM.from_pretrained(folder, config=config, torch_dtype=dtype).eval()


def tokenizer(folder):
    """The tokenizer, whose class older releases do not know."""
    config = json.loads((Path(folder) / "tokenizer_config.json").read_text())
    special = {name: config[name] for name in ("bos_token", "eos_token", "unk_token", "pad_token") if config.get(name)}
    return PreTrainedTokenizerFast(tokenizer_file=str(Path(folder) / "tokenizer.json"), **special)
