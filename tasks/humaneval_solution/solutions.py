"""How likely HumanEval's published solutions are; the YAML file beside this one says how lm-eval asks for them."""

from __future__ import annotations

import math
from typing import Any


def bits_per_byte(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """Bits for each byte of one document's solution; lm-eval takes the mean over documents."""
    ((loglikelihood, _),) = results
    return {"bits_per_byte": -loglikelihood / math.log(2) / len(doc["canonical_solution"].encode())}
