"""Tiny models, toy examples, and the plain form of what training does: one row, every layer, no hook of ours.

What tests of the training floor compare with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from conftest import make_tiny_model, make_tiny_tokenizer
from torch import Tensor, nn

from aft_harness.engine.decoder import decoder_layers
from aft_harness.engine.scoring import Request
from aft_harness.harness.examples import Example, TaskExamples, draw
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.pair_examples import draw_pairs
from aft_harness.harness.pair_sources import read
from aft_harness.harness.selection import PairSelection, PromptFormat, TaskSelection
from aft_harness.harness.tasks import Tasks
from aft_harness.training.recipe import Settings
from aft_harness.training.result import TrainingResult

TOYS = str(Path(__file__).parents[1] / "toy_tasks")

PLAIN = Settings(
    layers="middle", temperature=1.0, epochs=5, lr=1e-2, rate_unit="absolute", schedule="constant", keep=0.0
)
"""Nothing is measured on the model, so that what comes out can be computed by hand."""


def plain(**changes: Any) -> Settings:
    """Those settings, changed."""
    return replace(PLAIN, **changes)


def make_lm(architecture: str = "llama", double: bool = True, config: Any = None, **kwargs: Any) -> SteeredHFLM:
    """A tiny model of four layers."""
    model = make_tiny_model(architecture, **(config or {}))
    return SteeredHFLM(pretrained=model.double() if double else model, tokenizer=make_tiny_tokenizer(), **kwargs)


def examples(
    lm: SteeredHFLM, name: str = "toy_choice", *, prompt_format: PromptFormat | None = None, **selection: Any
) -> TaskExamples:
    """Examples of a toy task."""
    (drawn,) = draw([TaskSelection(name, **selection)], lm, prompt_format, source=Tasks([TOYS]))
    return drawn


def pairs(lm: SteeredHFLM, count: int = 6) -> TaskExamples:
    """Examples of pairs of text."""
    rows = [
        {"prompt": f"The child has {number} apples", "chosen": f" in {number} boxes.", "rejected": " and walks."}
        for number in range(count)
    ]
    return draw_pairs(read(rows), PairSelection(rows, held_out=0), lm).examples


def plain_loglikelihood(model: nn.Module, request: Request) -> Tensor:
    """Of one request, in one row of its own."""
    tokens = torch.tensor([[*request.context, *request.continuation]])
    logprobs = model(tokens[:, :-1]).logits.log_softmax(-1)[0]
    places = range(len(request.context) - 1, tokens.shape[1] - 1)
    return torch.stack([logprobs[place, tokens[0, place + 1]] for place in places]).sum()


def plain_loss(model: nn.Module, example: Example, objective: str, norm: str, temperature: float = 1.0) -> Tensor:
    """What `objective` is by its definition."""
    if objective == "answer":
        gold = example.requests[example.gold[0]]
        return -plain_loglikelihood(model, gold) / len(gold.continuation)
    if objective == "both":
        choice = plain_loss(model, example, "choice", norm, temperature)
        return plain_loss(model, example, "answer", norm) + choice
    scores = torch.stack([plain_loglikelihood(model, request) for request in example.requests])
    if norm == "characters":
        scores = scores / torch.tensor([len(choice) for choice in example.choices])
    return -(scores / temperature).log_softmax(0)[list(example.gold)].logsumexp(0)


def plain_mean_loss(lm: SteeredHFLM, examples: Sequence[Example], objective: str, norm: str = "none") -> float:
    """Mean over examples."""
    losses = [plain_loss(lm.model, example, objective, norm).item() for example in examples]
    return sum(losses) / len(losses)


def plain_scale(model: Any, task: TaskExamples, layer: int) -> float:
    """Median root mean square of a layer's output over the distinct tokens of the examples."""
    sizes = {}
    for index, example in enumerate(task.train):
        for request in example.requests:
            hidden = model(torch.tensor([request.inputs]), output_hidden_states=True).hidden_states[layer + 1][0]
            for place in range(len(request.inputs)):
                sizes[index, request.inputs[: place + 1]] = hidden[place].square().mean().sqrt().item()
    return sorted(sizes.values())[(len(sizes) - 1) // 2]


def plain_training(model: Any, task: TaskExamples, settings: Settings, objective: str) -> tuple[dict, list, list]:
    """Adam on vectors added to layer outputs, one example at a time: gradients of the first step, losses, vectors."""
    layers = settings.layer_indices(len(decoder_layers(model)))
    vectors = {layer: torch.zeros(32, dtype=model.dtype, requires_grad=True) for layer in layers}
    assert settings.temperature is not None

    def hook(layer: int) -> Any:
        def add(module: nn.Module, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (output[0] + vectors[layer].to(output[0].dtype), *output[1:])
            return output + vectors[layer].to(output.dtype)

        return add

    handles = [decoder_layers(model)[layer].register_forward_hook(hook(layer)) for layer in vectors]
    scales = {layer: plain_scale(model, task, layer) if settings.rate_unit == "residual" else 1.0 for layer in vectors}
    shared = len(vectors) if settings.rate_unit == "residual" else 1
    rates = [settings.lr * scales[layer] / shared for layer in vectors]
    optimiser = torch.optim.Adam([{"params": [vector]} for vector in vectors.values()])
    steps = settings.epochs * math.ceil(len(task.train) / settings.batch_size)
    done = 0
    first: dict[int, Tensor] = {}
    losses = []
    for epoch in range(1, settings.epochs + 1):
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
        order = torch.randperm(len(task.train), generator=generator).tolist()
        total = 0.0
        for start in range(0, len(order), settings.batch_size):
            batch = [task.train[index] for index in order[start : start + settings.batch_size]]
            optimiser.zero_grad()
            for example in batch:
                loss = plain_loss(model, example, objective, settings.choice_norm, settings.temperature)
                (loss / len(batch)).backward()
                total += loss.item()
            first = first or {layer: vector.grad.clone() for layer, vector in vectors.items()}  # type: ignore[union-attr]
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - done / steps if settings.schedule == "linear" else 1)
            optimiser.step()
            done += 1
        losses.append(total / len(order))
    for handle in handles:
        handle.remove()
    return first, losses, [vectors[layer].detach().float() for layer in sorted(vectors)]


def vectors_of(trained: TrainingResult) -> list[Tensor]:
    """What was learned, by layer."""
    return list(trained.booster.tensors.values())
