"""Tokenizers, as the real package finds them."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer


def get_tokenizer(name: str, *, tokenizer_mode: str = "auto", **settings: Any) -> Any:
    """The tokenizer of a folder."""
    return AutoTokenizer.from_pretrained(name, **settings)
