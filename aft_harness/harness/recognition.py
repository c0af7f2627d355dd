"""Which documents of a task a digest stands for, as tables of results record them.

Knows how lm-eval hashes documents. No model runs.
"""

from __future__ import annotations

import json
from typing import Any

from lm_eval.utils import handle_non_serializable, hash_string

from aft_harness.results.pairing import runs_of_documents
from aft_harness.slices import Slice


def document_hash(doc: Any) -> str:
    """The hash of a document, as lm-eval writes it into samples."""
    return str(hash_string(json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)))


def located(task: Any, n: int, digest: str) -> Slice | None:
    """The consecutive documents of a task that a digest stands for.

    Args:
        task: A task object of lm-eval.
        n: How many there are.
        digest: `Asked.documents` of their samples.

    Returns:
        Their ids; None if no such documents are found.
    """
    hashes = [document_hash(doc) for doc in task.eval_docs]
    for start, candidate in enumerate(runs_of_documents(hashes, n)):
        if candidate == digest:
            return Slice(start, start + n)
    return None
