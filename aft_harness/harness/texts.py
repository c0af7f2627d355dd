"""Texts that a model writes after a prompt, under one variant after the other, handed on while they are written.

Knows the model type and the generation of transformers. Knows nothing of tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from transformers import TextStreamer

from aft_harness.boosters.variant import Variant
from aft_harness.errors import ModelError
from aft_harness.harness.chat import chat_text
from aft_harness.harness.model import SteeredHFLM
from aft_harness.progress import ignore

OnText = Callable[[Variant, str], None]
"""Called with a variant and the next piece of its text."""


def chat_prompt(lm: SteeredHFLM, message: str, system: str | None = None) -> str:
    """A user's message as the chat template has it, up to where the answer begins.

    Raises:
        ModelError: The tokenizer has no chat template, or one that does not take these messages.
    """
    messages = [{"role": "system", "content": system}] if system else []
    try:
        return chat_text(lm, [*messages, {"role": "user", "content": message}])
    except ModelError as error:
        raise ModelError(f"{error}; give a plain prompt") from None


def write(
    lm: SteeredHFLM,
    prompt: str,
    variants: Sequence[Variant],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    on_text: OnText = ignore,
) -> list[str]:
    """Texts after a prompt, one a variant.

    Args:
        lm: The model.
        prompt: What the model continues; see `chat_prompt`.
        variants: Under which it continues it.
        max_new_tokens: Tokens to write at most.
        temperature: Of sampling; 0 takes the likeliest token.
        seed: Of sampling, the same for every variant.
        on_text: Called with each piece of a text.

    Raises:
        ModelError: The prompt is empty, or leaves no room for the text.
        BoosterError: A booster that does not fit the model.
    """
    tokens = lm.tok_encode(prompt) if prompt else [lm.prefix_token_id]
    if len(tokens) + max_new_tokens > lm.max_length:
        raise ModelError(
            f"a prompt of {len(tokens)} tokens and {max_new_tokens} new ones are more than the model's {lm.max_length} "
            f"positions"
        )
    steerings = [lm.steering_for(variant) for variant in variants]
    inputs = torch.tensor([tokens], device=lm.device)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    written = []
    for variant, steering in zip(variants, steerings, strict=True):
        pieces = _Pieces(lm, lambda text, variant=variant: on_text(variant, text))  # type: ignore[misc]
        torch.manual_seed(seed)
        with torch.no_grad(), steering or nullcontext():
            lm.model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=max_new_tokens,
                pad_token_id=lm.tokenizer.pad_token_id,
                streamer=pieces,
                **sampling,
            )
        written.append("".join(pieces.texts))
    return written


class _Pieces(TextStreamer):
    """Hands on each piece of a text as soon as its tokens make whole words."""

    def __init__(self, lm: SteeredHFLM, on_text: Callable[[str], None]) -> None:
        super().__init__(lm.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.texts: list[str] = []
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Takes a piece."""
        self.texts.append(text)
        if text:
            self._on_text(text)
