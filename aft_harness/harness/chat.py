"""Chat messages as a model's template has them, or one clear line where it takes them not.

Knows a tokenizer's template. Knows nothing of where messages come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aft_harness.errors import ModelError
from aft_harness.text import reason


def chat_text(lm: Any, messages: Sequence[Mapping[str, str]], *, answered: bool = False) -> str:
    """Messages through the chat template; what it refuses is an error, where `hf` leaves out the system's message.

    Args:
        lm: A `SteeredHFLM`.
        messages: With `role` and `content`.
        answered: The last one is the answer; otherwise the text ends where the answer begins.

    Raises:
        ModelError: There is no chat template, or it does not take these messages.
    """
    if lm.tokenizer.chat_template is None:
        raise ModelError(f"the tokenizer of {lm.base_model.name} has no chat template")
    try:
        text: str = lm.tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=not answered,
            **lm.chat_template_args,
        )
    except Exception as error:  # templates are programs of their own
        raise ModelError(f"the chat template refuses these messages ({reason(error)})") from None
    return text if answered else lm.prompts.templated(text)
