"""Passages of plain text, and how many bits a model needs for each of their bytes; see the YAML file beside this one.

Knows HellaSwag's rows. The only field of a document is `text`, so that any other data set with such a field will do.
"""

from __future__ import annotations

import math
from typing import Any

import datasets
from lm_eval.tasks.hellaswag.utils import process_docs

ROWS = range(4000, 4100)
"""Of HellaSwag's validation split, whose later rows are passages of WikiHow; its first ones are captions of videos."""


def of_hellaswag(rows: datasets.Dataset) -> datasets.Dataset:
    """The passages: context and right ending of each row, cleaned up and joined as the stock task joins them."""
    chosen = process_docs(rows.select(ROWS))
    return chosen.map(
        lambda row: {"text": f"{row['query']} {row['choices'][row['gold']]}"}, remove_columns=chosen.column_names
    )


def bits_per_byte(doc: dict[str, Any], results: list[float]) -> dict[str, float]:
    """Bits for each UTF-8 byte of one document; lm-eval takes the mean over documents."""
    (loglikelihood,) = results
    return {"bits_per_byte": -loglikelihood / math.log(2) / len(doc["text"].encode())}
