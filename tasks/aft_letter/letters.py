"""The documents of the letter-format tasks: a question, its options, and a letter for each.

HellaSwag keeps the split that was first published: rows 0-199 of the validation split train, rows 200-399 test. Both
stand in the split that the stock task evaluates, so a booster trained here is not held out there, and aft_harness says
so. Its own training split is there as `development`, to make choices by. ARC-Easy keeps its own splits.
"""

from __future__ import annotations

from typing import Any

import datasets

LETTERS = "ABCDE"
HELLASWAG_SPLITS = {"train": range(0, 200), "test": range(200, 400)}
DEVELOPMENT = range(0, 1000)
"""Rows of HellaSwag's training split: more than choices need."""


def hellaswag(**_: object) -> datasets.DatasetDict:
    """HellaSwag: `ctx`, `options`, `letters` and `gold`."""
    rows = datasets.load_dataset("Rowan/hellaswag")
    splits = {name: rows["validation"].select(indices) for name, indices in HELLASWAG_SPLITS.items()}
    splits["development"] = rows["train"].select(DEVELOPMENT[: len(rows["train"])])
    return datasets.DatasetDict({name: split.map(_hellaswag) for name, split in splits.items()})


def arc_easy(**_: object) -> datasets.DatasetDict:
    """ARC-Easy: `question`, `options`, `letters` and `gold`."""
    splits = datasets.load_dataset("allenai/ai2_arc", "ARC-Easy")
    return datasets.DatasetDict({name: splits[name].map(_arc) for name in ("train", "test")})


def _hellaswag(row: dict[str, Any]) -> dict[str, Any]:
    return _lettered(row["endings"], int(row["label"]))


def _arc(row: dict[str, Any]) -> dict[str, Any]:
    return _lettered(row["choices"]["text"], row["choices"]["label"].index(row["answerKey"]))


def _lettered(options: list[str], gold: int) -> dict[str, Any]:
    return {"options": options, "letters": list(LETTERS[: len(options)]), "gold": gold}
