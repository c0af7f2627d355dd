"""Texts made tokens as lm-eval makes them, and cut to what a model takes.

Knows the methods of lm-eval's `TemplateLM`. Knows no engine.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from aft_harness.engine.scoring import Request
from aft_harness.errors import ModelError

logger = logging.getLogger(__name__)


def encode(lm: Any, context: str, continuation: str) -> Request:
    """Tokenises a request as lm-eval's `loglikelihood` does, left-truncated to the model's length.

    Args:
        lm: A `TemplateLM`.
        context: What stands before; empty means the prefix token.
        continuation: What is scored.

    Raises:
        ModelError: The continuation has no tokens, or more than the model has positions.
    """
    if context:
        first, second = lm._encode_pair(context, continuation)
    else:
        first, second = [lm.prefix_token_id], lm.tok_encode(continuation, add_special_tokens=False)
        if second[:1] == first:
            first, second = second[:1], second[1:]
    return request(first, second, lm.max_length, (context, continuation))


def request(
    context: Sequence[int], continuation: Sequence[int], max_length: int, text: tuple[str, str] | None = None
) -> Request:
    """A request that fits a model of `max_length` positions, left-truncated where it must be.

    Args:
        context: Tokens before the continuation.
        continuation: Tokens that are scored.
        max_length: Positions of the model.
        text: Both as text, for messages.

    Raises:
        ModelError: The continuation has no tokens, or more than the model has positions.
    """
    if not context or not 0 < len(continuation) <= max_length:
        which = f" ({text[1][:40]!r} after ...{text[0][-40:]!r})" if text else ""
        raise ModelError(
            f"a continuation of {len(continuation)} tokens after {len(context)} cannot be scored by a model with "
            f"{max_length} positions{which}"
        )
    whole = Request(tuple(context), tuple(continuation))
    kept = whole.truncated(max_length)
    if kept is not whole:
        logger.warning("left-truncated a request of %d tokens", len(whole.context + whole.continuation))
    return kept
