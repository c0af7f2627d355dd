"""Loglikelihoods of a GGUF file in float32 beside those of the checkpoint, in an environment with llama-cpp-python.

    python scripts/studies/quantised/agreement.py FILE BOOSTER LIMIT TASK...

Prints one line of JSON: rows of a table. Knows both model types and lm-eval's tasks.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from typing import Any

import numpy as np

from aft_harness.boosters import references
from aft_harness.boosters.variant import BASELINE
from aft_harness.demo import model_folder
from aft_harness.harness.gguf import SteeredGgufLM
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.tasks import Tasks


def main(file: str, booster: str, limit: int, *tasks: str) -> None:
    """Compares both, without the booster and with it."""
    models: list[Any] = [
        SteeredGgufLM(file, device="cpu", tokenizer=str(model_folder())),
        SteeredHFLM(str(model_folder()), dtype="float32", device="cpu", batch_size=16, softmax_dtype="float32"),
    ]
    rows = []
    for name in tasks:
        task = Tasks().leaves([name])[name]
        task.set_config("num_fewshot", 0)
        task.build_all_requests(limit=limit)
        lengths = [[len(choice) for choice in task.doc_to_choice(doc)] for _, doc in task.doc_iterator(limit=limit)]
        bounds = np.cumsum([0, *map(len, lengths)])
        for variant in (BASELINE, references.load(booster)):
            scores = []
            for lm in models:
                requests = [lm.encode(*instance.args) for instance in task.instances]
                (found,) = lm.score_variants(requests, [variant])
                scores.append(np.array([score for score, _ in found]))
            # A document counts where both choose the same by the sum and by the sum a character.
            equal = 0
            for (start, end), sizes in zip(pairwise(bounds), lengths, strict=True):
                ours, theirs = (each[start:end] for each in scores)
                equal += int(ours.argmax() == theirs.argmax() and (ours / sizes).argmax() == (theirs / sizes).argmax())
            rows.append(
                {
                    "task": name,
                    "booster": booster if variant is not BASELINE else "none",
                    "requests": int(bounds[-1]),
                    "max_difference": float(np.abs(scores[0] - scores[1]).max()),
                    "equal": equal,
                    "n": len(lengths),
                }
            )
            print(rows[-1], file=sys.stderr)
    print(json.dumps(rows))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
