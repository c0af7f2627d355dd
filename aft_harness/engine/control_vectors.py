"""A variant as the vectors that llama.cpp adds to the outputs of layers, and whether it really adds them.

Knows boosters, and readers of tokens. What cannot be said by such a vector is refused with the way out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from aft_harness.boosters.injections import StaticInjection
from aft_harness.errors import BoosterError, ModelError

if TYPE_CHECKING:
    from aft_harness.boosters.variant import Variant
    from aft_harness.engine.sequences import Reader, Vectors


def vectors_of(variant: Variant) -> dict[int, Tensor] | None:
    """What a variant adds to the output of each layer, the strength included; None where it changes nothing.

    Raises:
        BoosterError: It steers layer 0, or is no vector.
    """
    if variant.booster is None or variant.strength == 0 or variant.booster.is_zero:
        return None
    found = {}
    for layer, injection in variant.booster.scaled(variant.strength).injections.items():
        if injection.is_zero:
            continue
        if not isinstance(injection, StaticInjection):
            raise BoosterError(
                f"{variant.name}: layer {layer} has a {injection.spec['kind']} injection, and llama.cpp adds vectors "
                "only; use --model steered-hf, or train a booster with --kind static"
            )
        if layer == 0:
            raise BoosterError(
                f"{variant.name}: llama.cpp's control vectors cannot steer layer 0; write the booster into a copy of "
                "the model (aft export gguf-model) and evaluate that, or train with --layers 1-"
            )
        found[layer] = injection.vector
    return found


def check_steering(reader: Reader, vectors: Vectors, tokens: Sequence[int], name: str) -> None:
    """Reads a few tokens with vectors and without: llama.cpp does not say so where it leaves a control vector out.

    The lowest and the highest layer are tried by themselves, too.

    Args:
        reader: Reads tokens.
        vectors: What a booster adds.
        tokens: Any.
        name: What messages call the booster.

    Raises:
        ModelError: The model's output does not change.
    """
    reader.reserve(len(tokens))
    unsteered = _read(reader, None, tokens)
    for layers in dict.fromkeys((tuple(vectors), (min(vectors),), (max(vectors),))):
        if torch.equal(_read(reader, {layer: vectors[layer] for layer in layers}, tokens), unsteered):
            which = f"layer {layers[0]}" if len(layers) == 1 else "its layers"
            raise ModelError(
                f"{name}: llama.cpp leaves the control vector out: with {which} steered the model's output is what it "
                "was; this architecture takes none, or the vector is too small for the file's precision"
            )
    if not torch.equal(_read(reader, None, tokens), unsteered):
        raise ModelError(f"{name}: llama.cpp does not return to the unchanged model after it was steered")


def check_one_by_one(reader: Reader, tokens: Sequence[int], tolerance: float) -> None:
    """Compares tokens that are read together with the same tokens one by one: other parts of llama.cpp do these.

    Args:
        reader: Reads tokens.
        tokens: Any.
        tolerance: Largest divergence of a position's probabilities that counts as none, in nats (Kullback and Leibler).

    Raises:
        ModelError: They differ, or a number is none.
    """
    reader.reserve(len(tokens))
    together = _read(reader, None, tokens).log_softmax(dim=-1)
    reader.forget_all()
    one_by_one = torch.cat([part.clone() for part in _each(reader, tokens)]).log_softmax(dim=-1)
    # Unlikely tokens move by tenths of a nat where one activation is rounded the other way; likely ones count here.
    worst = float((together.exp() * (together - one_by_one)).sum(dim=-1).max())
    if not worst <= tolerance:  # what is not a number must fail, too
        raise ModelError(
            "llama.cpp gives other results for tokens that are read together than for the same tokens one by one "
            f"(their probabilities diverge by {worst:.2g} nats): its kernels for this CPU or GPU cannot be trusted "
            "with this file; try repack=off, flash_attn=off or n_gpu_layers=0"
        )


def distance(reader: Reader, reference: Reader, tokens: Sequence[int]) -> float:
    """How far apart two readers are: the mean |difference| of the log probabilities of the tokens of a text."""
    found = []
    for each in (reader, reference):
        each.reserve(len(tokens))
        logprobs = _read(each, None, tokens).log_softmax(dim=-1)
        found.append(logprobs[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])])
    return float((found[0] - found[1]).abs().mean())


def _read(reader: Reader, vectors: Vectors | None, tokens: Sequence[int]) -> Tensor:
    """The logits of all positions, [tokens, vocabulary]."""
    reader.steer(vectors)
    parts = []
    size = min(reader.most_tokens, reader.most_outputs)
    for start in range(0, len(tokens), size):
        parts.append(_decode(reader, tokens[start : start + size], start).clone())
    return torch.cat(parts)


def _each(reader: Reader, tokens: Sequence[int]) -> Iterator[Tensor]:
    for place, token in enumerate(tokens):
        yield _decode(reader, [token], place)


def _decode(reader: Reader, tokens: Sequence[int], start: int) -> Tensor:
    size = len(tokens)
    return reader.decode(
        np.array(tokens, dtype=np.int32),
        np.arange(start, start + size, dtype=np.int32),
        np.zeros(size, dtype=np.int32),
        np.ones(size, dtype=np.int32),
        np.ones(size, dtype=np.bool_),
    )
