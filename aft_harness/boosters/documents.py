"""When are two documents the same question: normalised text, hashed to 8 bytes.

Judged by the question's text and never by split or id, so that the same question in another split, task or answer
format counts as the same document. Knows lm-eval documents as dictionaries; knows nothing of tasks or models.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

QUESTION_FIELDS = (
    "question",
    "question_stem",
    "ctx",
    "sentence",
    "problem",
    "goal",
    "premise",
    "query",
    "prompt",
    "input",
    "text",
)
"""Fields that hold a document's question in the datasets of lm-eval, in the order in which they are tried."""

DISTINCT = 0.9
"""A field is a question only if so many of a task's documents differ in it: COPA's `question` is one of two words."""


def question_field(documents: Sequence[Mapping[str, Any]]) -> str | None:
    """The field that identifies the documents of one task, or None when only their whole text does."""
    for field in QUESTION_FIELDS:
        texts = [document.get(field) for document in documents]
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            continue
        if len({normalised(str(text)) for text in texts}) >= DISTINCT * len(texts):
            return field
    return None


def possible_hashes(document: Mapping[str, Any], text: str) -> set[str]:
    """Every hash that a document could have been recorded under, whatever field was chosen for its task."""
    texts = [document.get(field) for field in QUESTION_FIELDS]
    return {text_hash(candidate) for candidate in [*texts, text] if isinstance(candidate, str) and candidate.strip()}


def text_hash(text: str) -> str:
    """The first 8 bytes of the SHA-256 of the normalised text, as 16 hex digits."""
    return hashlib.sha256(normalised(text).encode()).hexdigest()[:16]


def normalised(text: str) -> str:
    """Text without what formatting changes: case, width, punctuation, white space."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())) or text.strip()
