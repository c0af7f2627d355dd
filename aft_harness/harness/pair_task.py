"""A set of pairs as a task of lm-eval, which evaluates whether the chosen texts are the likelier ones.

Knows lm-eval's task objects and pairs whose prompts and texts are already as the model reads them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask

from aft_harness.harness.notices import without_notices


@dataclass(frozen=True)
class Rendered:
    """A pair as a model reads it.

    Attributes:
        question: What tells it apart.
        context: The prompt, through the chat template where there is one.
        continuations: What follows it: the chosen text and, where there is one, the rejected one, each with what ends
            it.
        texts: These texts alone.
    """

    question: str
    context: str
    continuations: tuple[str, ...]
    texts: tuple[str, ...]


class PairTask(ConfigurableTask):
    """Pairs as documents of lm-eval; prompts are taken as they are, whatever an evaluation says of templates."""

    def fewshot_context(self, doc: dict[str, Any], *arguments: Any, **options: Any) -> str:
        """The prompt."""
        return str(doc["context"])


def pair_task(name: str, version: str, pairs: Sequence[Rendered]) -> PairTask:
    """The task object of some pairs, all of one kind.

    Args:
        name: What tables call it.
        version: Identity of the set that they are from.
        pairs: At least one.

    Returns:
        A task with the metrics `acc` (1 where the chosen text is likelier than the rejected one), `acc_norm` (where it
        is per character) and `margin` (by how many nats); of pairs without a rejected text, with `bits_per_byte`.
    """
    compared = len(pairs[0].continuations) > 1
    columns = ("question", "context", "continuations", "texts")
    rows = datasets.Dataset.from_list([{column: getattr(pair, column) for column in columns} for pair in pairs])
    kind: dict[str, Any] = (
        {"output_type": "multiple_choice", "doc_to_choice": _continuations, "doc_to_target": _chosen}
        if compared
        else {"output_type": "loglikelihood", "doc_to_target": _continuation}
    )
    metrics = {"acc": True, "acc_norm": True, "margin": True} if compared else {"bits_per_byte": False}
    config = {
        "task": name,
        "custom_dataset": lambda **_: {"test": rows},
        "test_split": "test",
        "doc_to_text": _context,
        "target_delimiter": "",
        "num_fewshot": 0,
        "process_results": _preferred if compared else _bits_per_byte,
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": better} for metric, better in metrics.items()
        ],
        "metadata": {"version": version},
        **kind,
    }
    with without_notices():
        return PairTask(config=config)


def _context(doc: Mapping[str, Any]) -> str:
    return str(doc["context"])


def _continuations(doc: Mapping[str, Any]) -> list[str]:
    return list(doc["continuations"])


def _continuation(doc: Mapping[str, Any]) -> str:
    return str(doc["continuations"][0])


def _chosen(doc: Mapping[str, Any]) -> int:
    return 0


def _preferred(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    chosen, rejected = (loglikelihood for loglikelihood, _ in results)
    lengths = [max(1, len(text)) for text in doc["texts"]]
    return {
        "acc": float(chosen > rejected),
        "acc_norm": float(chosen / lengths[0] > rejected / lengths[1]),
        "margin": chosen - rejected,
    }


def _bits_per_byte(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    ((loglikelihood, _),) = results
    return {"bits_per_byte": -loglikelihood / math.log(2) / max(1, len(doc["texts"][0].encode()))}
