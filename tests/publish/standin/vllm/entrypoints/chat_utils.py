"""Chat templates, as the real package finds them."""

from __future__ import annotations

from typing import Any


def resolve_hf_chat_template(tokenizer: Any, chat_template: str | None = None, **settings: Any) -> str | None:
    """The template of a tokenizer."""
    return chat_template or tokenizer.chat_template
