"""Requests, boosters and tokens for tiny models, and plain PyTorch as the oracle of the engine."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import nn

from aft_harness.boosters.booster import Booster
from aft_harness.engine.decoder import decoder_layers
from aft_harness.engine.scoring import Engine, Request

ARCHITECTURES = ["llama", "phi", "gpt2", "qwen2", "gemma", "falcon", "opt", "gpt_neox", "bloom", "mixtral", "mamba"]
TOKENS = torch.tensor([[3, 17, 42, 5, 99, 12], [8, 8, 120, 44, 7, 1]])


def booster_for(model: Any, layer: int = 1, seed: int = 0) -> Booster:
    generator = torch.Generator().manual_seed(seed)
    return Booster.static({layer: torch.randn(model.config.hidden_size, generator=generator)})


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def made_requests(seed: int = 0, documents: int = 10) -> list[Request]:
    """Documents with four continuations each, some sharing a long prefix, one twice."""
    rng = random.Random(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randint(3, 300) for _ in range(rng.randint(low, high)))

    shots = tokens(12, 12)
    found = []
    for document in range(documents):
        context = (shots if document % 2 else ()) + tokens(3, 25)
        found += [Request(context, tokens(1, 5)) for _ in range(4)]
    return [*found, found[0], Request(found[0].context, found[0].continuation[:1])]


def engine(model: Any, **kwargs: Any) -> Engine:
    return Engine(model, decoder_layers(model), torch.device("cpu"), **kwargs)


def alone(model: Any, request: Request) -> tuple[float, bool]:
    """The oracle: the request in a row of its own, and plain PyTorch."""
    with torch.no_grad():
        logits = model(torch.tensor([request.inputs])).logits[0, -len(request.continuation) :]
    targets = torch.tensor(request.continuation)
    score = logits.log_softmax(-1).gather(1, targets[:, None]).sum()
    return float(score), bool((logits.argmax(-1) == targets).all())


def assert_equal(found: list[tuple[float, bool]], expected: list[tuple[float, bool]]) -> None:
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert max(abs(left - right) for (left, _), (right, _) in zip(found, expected, strict=True)) < 1e-4
