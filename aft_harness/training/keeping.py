"""Keeping: a term of the loss that holds the steered model to the unsteered one on plain text.

Knows token sequences, the scoring engine and a divergence. Knows nothing of tasks, objectives or optimisers.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from transformers import GenerationConfig

from aft_harness.engine.predictions import rows_at_a_time
from aft_harness.engine.scoring import Engine, Request
from aft_harness.errors import TrainingError
from aft_harness.harness.model import SteeredHFLM
from aft_harness.progress import OnProgress, ignore
from aft_harness.training.hidden_states import HiddenStates
from aft_harness.training.prepared import PreparedExamples

TEXTS = 32
"""Texts that are kept, unless a file says otherwise."""

TOKENS = 64
"""Length of each."""

TEXTS_A_STEP = 1
"""Texts whose divergence is added to the loss of one optimiser step. Two take twice the time and are no better."""

_SHORTEST = 8
"""Tokens; what is left over of a text from a file and is shorter than this is not used."""


def sampled_texts(lm: SteeredHFLM, seed: int, count: int = TEXTS, tokens: int = TOKENS) -> list[Request]:
    """Texts that the unsteered model writes itself: samples at temperature 1 that start from nothing.

    Args:
        lm: The model, unsteered.
        seed: Of the samples.
        count: How many.
        tokens: Length of each.
    """
    tokens = min(tokens, lm.max_length)
    prompt = torch.full((count, 1), lm.prefix_token_id, device=lm.device)
    sampling = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        min_new_tokens=tokens,  # a text that ends early would only be shorter
        max_new_tokens=tokens,
        pad_token_id=lm.tokenizer.pad_token_id,
    )
    devices = [lm.device] if lm.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        model: Any = lm.model
        written = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=sampling)
    return [Request((row[0],), tuple(row[1:])) for row in written.tolist()]


def texts_of(
    lm: SteeredHFLM, texts: Sequence[str], seed: int, count: int = TEXTS, tokens: int = TOKENS
) -> list[Request]:
    """Pieces of given texts, from every one of them in turn.

    Args:
        lm: Whose tokens they become.
        texts: Plain text.
        seed: Of the choice, where there are more pieces than are kept.
        count: How many at most.
        tokens: Length of each at most.

    Raises:
        TrainingError: The texts are too short.
    """
    tokens = min(tokens, lm.max_length)
    pieces = []
    for text in texts:
        encoded = lm.tok_encode(text, add_special_tokens=False)
        pieces += [tuple(encoded[start : start + tokens]) for start in range(0, len(encoded), tokens)]
    pieces = [piece for piece in pieces if len(piece) >= _SHORTEST]
    if not pieces:
        raise TrainingError(f"the texts to keep have no piece of {_SHORTEST} tokens or more")
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(seed)).tolist()
    return [Request((lm.prefix_token_id,), pieces[place]) for place in order[:count]]


class Keeping:
    """What the unsteered model predicts on some texts, and how far the steered one is from it; a context manager.

    The predictions are computed once and kept as half-precision probabilities over the whole vocabulary.
    """

    def __init__(self, engine: Engine, texts: Sequence[Request], store: HiddenStates) -> None:
        """Lays the texts out; `cache` must follow.

        Args:
            engine: Runs the model.
            texts: What the model is held to itself on: a prefix each, and the tokens that follow.
            store: Beside which the predictions are kept.
        """
        self._engine = engine
        self._prepared = PreparedExamples(engine, [[text] for text in texts])
        self._states, self._predictions = store.beside(), store.beside()
        self._entropies: list[float] = []

    def __len__(self) -> int:
        """Number of texts."""
        return len(self._prepared)

    def cache(self, lowest: int, on_progress: OnProgress = ignore) -> None:
        """Computes what every later pass starts from and is compared with. The model must not be steered.

        Args:
            lowest: The lowest trained layer.
            on_progress: Called with how many texts are done, and of how many.
        """
        self._prepared.cache(lowest, self._states)
        with torch.no_grad():
            for index in range(len(self)):
                (logits,) = self._prepared.predictions([index])
                probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1).half()
                self._predictions.append(probabilities)
                self._entropies.append(float(torch.special.entr(probabilities.float()).sum(-1).mean()))
                on_progress(index + 1, len(self))

    @property
    def cached(self) -> bool:
        """Whether passes start at cached states, and run no layer below."""
        return self._prepared.cached

    def texts_of_step(self, step: int, seed: int) -> list[int]:
        """The texts of an optimiser step: all take turns, in a seeded order.

        Args:
            step: Counted from 0 over the whole training.
            seed: Of the order.
        """
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist()
        count = min(TEXTS_A_STEP, len(self))
        return [order[(step * count + place) % len(self)] for place in range(count)]

    def divergence(self, texts: Sequence[int]) -> Tensor:
        """Mean over texts and tokens of KL(unsteered || steered), in nats; differentiable, see `cross_entropy`.

        Args:
            texts: Indices of the texts.
        """
        divergences = [
            cross_entropy(logits, self._predictions[index]).mean() - self._entropies[index]
            for index, logits in zip(texts, self._prepared.predictions(texts), strict=True)
        ]
        return torch.stack(divergences).mean()

    def __enter__(self) -> Self:
        """Returns this."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drops what was kept."""
        self._states.__exit__(kind, error, trace)
        self._predictions.__exit__(kind, error, trace)


def cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Cross-entropy of the softmax of `logits` against given distributions, one a row, [n] in nats; differentiable.

    The gradient is softmax - probabilities. It is formed in the forward pass, a few rows at a time: half a dozen copies
    of all logits in float32, as torch's own functions would make them, take longer than the model's layers.

    Args:
        logits: [n, vocabulary].
        probabilities: Of the same shape; each row sums to 1.
    """
    result: Tensor = _CrossEntropy.apply(logits, probabilities)  # type: ignore[no-untyped-call]
    return result


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, probabilities: Tensor) -> Tensor:
        precision = torch.promote_types(logits.dtype, torch.float32)
        gradient = torch.empty_like(logits)
        found = []
        rows = rows_at_a_time(logits)
        for part, wanted, target in zip(
            logits.split(rows), probabilities.split(rows), gradient.split(rows), strict=True
        ):
            part, wanted = part.to(precision), wanted.to(precision)
            normaliser = part.logsumexp(-1, keepdim=True)
            found.append(normaliser.squeeze(-1) * wanted.sum(-1) - torch.linalg.vecdot(wanted, part))
            target.copy_((part - normaliser).exp_().sub_(wanted))
        ctx.save_for_backward(gradient)
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * weights.unsqueeze(-1).to(gradient.dtype), None
