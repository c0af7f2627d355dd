"""Small models that are trained from scratch: five kinds of the same size, on the same text with the same tokenizer.

Knows configurations of transformers, the training loop and its checkpoints. Knows nothing of what the text is about.

A training is one stream of windows in an order that a seed decides. Its state is written about once a minute: after an
interruption it goes on from there, and ends with the same weights (with the same number of threads). A model is an
ordinary checkpoint, put in its place whole: where its folder exists, it is not trained again.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast

from aft_harness.digests import digest
from aft_harness.files import written_whole

KINDS = ("llama", "qwen2", "gemma", "phi", "mistral")
"""Kinds of the roadmap's models, by the `model_type` of transformers."""

RECORD = "pretraining.json"
"""A file beside a model's weights that says how it was made."""

HELD_OUT = 0.02
"""Fraction of the windows that is not learned from, for the loss that is reported."""

STATE_EVERY = 60.0
"""Seconds between two states."""

TRIED = 7
"""Steps from which the time of one is estimated."""

PAD, BOS, EOS = "<pad>", "<s>", "</s>"


@dataclass(frozen=True)
class Recipe:
    """Sizes of the models, and how they are trained.

    Attributes:
        hidden: Width of the residual stream.
        layers: Number of decoder layers.
        head: Width of an attention head.
        vocabulary: Number of tokens, at most.
        length: Tokens of a window.
        batch: Windows of an optimiser step.
        steps: Optimiser steps.
        lr: Highest learning rate of AdamW, after the warm-up.
        warmup: Steps in which the rate rises; it falls to a tenth in a cosine afterwards.
        weight_decay: Of matrices.
        seed: Of weights and order.
    """

    hidden: int = 192
    layers: int = 6
    head: int = 32
    vocabulary: int = 2048
    length: int = 256
    batch: int = 8
    steps: int = 1200
    lr: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.1
    seed: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that are learned from, counted each time."""
        return self.steps * self.batch * self.length


def config(kind: str, recipe: Recipe) -> PreTrainedConfig:
    """A small configuration with what sets its kind apart in the roadmap's models."""
    heads = recipe.hidden // recipe.head
    gated = recipe.hidden * 8 // 3 // 32 * 32  # with a gate as many weights as 4 x hidden has without
    kinds: Mapping[str, Mapping[str, Any]] = {
        "llama": {"num_key_value_heads": max(heads // 3, 1)},
        "qwen2": {"num_key_value_heads": heads},
        "gemma": {"num_key_value_heads": 1, "head_dim": recipe.head},
        "phi": {"num_key_value_heads": heads, "partial_rotary_factor": 0.5, "intermediate_size": 4 * recipe.hidden},
        # A window that is shorter than the texts, so that it does something.
        "mistral": {"num_key_value_heads": max(heads // 3, 1), "sliding_window": recipe.length // 2},
    }
    common = {
        "vocab_size": recipe.vocabulary,
        "hidden_size": recipe.hidden,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": heads,
        "intermediate_size": gated,
        "max_position_embeddings": 2 * recipe.length,
        "tie_word_embeddings": kind == "gemma",
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return AutoConfig.for_model(kind, **{**common, **kinds[kind]})


def tokenizer_of(texts: Iterable[str], vocabulary: int, length: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE that is trained on texts; digits are tokens of their own, and texts begin with `<s>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, bos_token=BOS, eos_token=EOS, model_max_length=2 * length
    )


def windows_of(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, length: int, seed: int) -> Tensor:
    """Texts in a seeded order, each between its marks of beginning and end, cut into rows: int64 [rows, length]."""
    order = np.random.default_rng(seed).permutation(len(texts))
    end = tokenizer.eos_token_id
    encoded = tokenizer([texts[place] for place in order], verbose=False)["input_ids"]  # some are longer than a window
    stream = [token for ids in encoded for token in (*ids, end)]
    rows = len(stream) // length
    return torch.tensor(stream[: rows * length]).view(rows, length)


def pretrain(
    kind: str,
    windows: Tensor,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    folder: Path,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    state_every: float = STATE_EVERY,
) -> dict[str, Any]:
    """Trains a model and puts it into its folder, or reads how it was trained where it is there already.

    Args:
        kind: One of `KINDS`.
        windows: From `windows_of`.
        tokenizer: Saved beside the weights.
        recipe: Sizes and how to train.
        folder: Of the model.
        on_step: Called with each finished step and its loss.
        state_every: Seconds between two states.

    Returns:
        What `RECORD` holds.
    """
    if (record := folder / RECORD).is_file():
        return dict(json.loads(record.read_text(encoding="utf-8")))
    model, adam = _begun(kind, recipe)
    held_out = max(int(HELD_OUT * len(windows)), 1)
    learned, kept = windows[held_out:], windows[:held_out]
    identity = digest([kind, asdict(recipe), hashlib.sha256(windows.numpy().tobytes()).hexdigest(), torch.__version__])
    state = folder.with_name(f"{folder.name}.state")
    done, seconds = _resumed(state, identity, model, adam)
    began = saved = time.perf_counter()
    model.train()
    for step in range(done, recipe.steps):
        for group in adam.param_groups:
            group["lr"] = recipe.lr * _rate(step, recipe)
        batch = learned[_rows(step, len(learned), recipe)]
        on_step(step + 1, _step(model, adam, batch))
        if time.perf_counter() - saved >= state_every:
            _save(state, identity, model, adam, step + 1, seconds + time.perf_counter() - began)
            saved = time.perf_counter()
    model.eval()
    with torch.no_grad():
        final = sum(float(_loss(model, part)) * len(part) for part in kept.split(recipe.batch)) / len(kept)
    found = {
        "kind": kind,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": recipe.tokens,
        "windows": len(learned),
        "held_out_loss": final,
        "seconds": round(seconds + time.perf_counter() - began, 1),
        "threads": torch.get_num_threads(),
        "recipe": asdict(recipe),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(folder) as place:
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        (place / RECORD).write_text(json.dumps(found, indent=1), encoding="utf-8")
    state.unlink(missing_ok=True)
    return found


def seconds_of_step(kind: str, windows: Tensor, recipe: Recipe) -> float:
    """About how long an optimiser step takes on this machine."""
    model, adam = _begun(kind, recipe)
    seconds = []
    for _ in range(TRIED):  # the first one is slower
        start = time.perf_counter()
        _step(model, adam, windows[: recipe.batch])
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[TRIED // 2]


def _begun(kind: str, recipe: Recipe) -> tuple[Any, torch.optim.AdamW]:
    """A model with random weights in float32, and its optimiser."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = AutoModelForCausalLM.from_config(config(kind, recipe), dtype=torch.float32)
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return model, torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95), fused=True)


def _step(model: Any, adam: torch.optim.AdamW, batch: Tensor) -> float:
    loss = _loss(model, batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    adam.step()
    adam.zero_grad()
    return float(loss.detach())


def _loss(model: Any, batch: Tensor) -> Tensor:
    # Weights stay in float32; products are in bfloat16, which takes half of the time on CPUs that know it.
    with torch.autocast(model.device.type, torch.bfloat16):
        loss: Tensor = model(input_ids=batch, labels=batch, use_cache=False).loss
    return loss


def _rate(step: int, recipe: Recipe) -> float:
    """The part of the highest learning rate that a step has."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    passed = (step - recipe.warmup) / max(recipe.steps - recipe.warmup, 1)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * passed))


def _rows(step: int, count: int, recipe: Recipe) -> Tensor:
    """The windows of a step: those of each pass over the text are in an order of their own, which follows from it."""
    places = torch.arange(step * recipe.batch, (step + 1) * recipe.batch)
    rows = []
    for place in places.tolist():
        turn, inside = divmod(place, count)
        rows.append(int(_order(turn, count, recipe.seed)[inside]))
    return torch.tensor(rows)


@lru_cache(maxsize=2)
def _order(turn: int, count: int, seed: int) -> Any:
    """The order of the windows in a pass over the text; a step may take from two passes."""
    return np.random.default_rng([seed, turn]).permutation(count)


def _save(place: Path, identity: str, model: Any, adam: torch.optim.AdamW, step: int, seconds: float) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(place, replace=True) as temporary:
        state = {"identity": identity, "step": step, "seconds": seconds}
        torch.save({**state, "model": model.state_dict(), "adam": adam.state_dict()}, temporary)


def _resumed(place: Path, identity: str, model: Any, adam: torch.optim.AdamW) -> tuple[int, float]:
    """Steps and seconds of the training whose state is there; 0 where there is none, or that of another."""
    if not place.is_file():
        return 0, 0.0
    state = torch.load(place, weights_only=True)
    if state["identity"] != identity:
        return 0, 0.0
    model.load_state_dict(state["model"])
    adam.load_state_dict(state["adam"])
    return int(state["step"]), float(state["seconds"])
