"""The documents of the question forms: a question, its options, a letter for each, and which option is right.

Every form of a data set asks the same documents, in the splits that the stock task uses. The published test split of
CommonsenseQA has no answers, so it is evaluated on the validation split, as the stock task is; test rows that do have
an answer are added to it.
"""

from __future__ import annotations

from typing import Any

import datasets

LETTERS = "ABCDE"


def arc_easy(**_: object) -> datasets.DatasetDict:
    """ARC-Easy: `question`, `options`, `letters` and `gold`."""
    return _asked(datasets.load_dataset("allenai/ai2_arc", "ARC-Easy"), "question")


def openbookqa(**_: object) -> datasets.DatasetDict:
    """OpenBookQA: `question`, `options`, `letters` and `gold`."""
    return _asked(datasets.load_dataset("allenai/openbookqa", "main"), "question_stem")


def commonsense_qa(**_: object) -> datasets.DatasetDict:
    """CommonsenseQA: `question`, `options`, `letters` and `gold`."""
    splits = datasets.load_dataset("tau/commonsense_qa")
    answered = splits["test"].filter(lambda row: bool(row["answerKey"]))
    evaluated = datasets.concatenate_datasets([splits["validation"], answered])
    return _asked(datasets.DatasetDict({"train": splits["train"], "validation": evaluated}), "question")


def _asked(splits: datasets.DatasetDict, stem: str) -> datasets.DatasetDict:
    def asked(row: dict[str, Any]) -> dict[str, Any]:
        choices = row["choices"]
        return {
            "question": row[stem].strip(),
            "options": choices["text"],
            "letters": list(LETTERS[: len(choices["text"])]),
            "gold": choices["label"].index(row["answerKey"].strip()),
        }

    return datasets.DatasetDict(
        {name: rows.map(asked, remove_columns=rows.column_names) for name, rows in splits.items()}
    )
