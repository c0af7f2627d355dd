"""Documents of the toy tasks: small, seeded, without a network."""

from __future__ import annotations

import random

import datasets

WORDS = ["child", "door", "light", "night", "water", "plants", "apple", "box", "room", "cold", "school", "coat", "walk"]


def _document(rng: random.Random, index: int) -> dict:
    choices = rng.sample(WORDS, 3)
    return {
        "question": f"Number {index}: which {rng.choice(WORDS)} is in the {rng.choice(WORDS)}?",
        "choices": choices,
        "gold": index % 3,
        "answer": choices[index % 3],
        "both": [index % 3, (index + 1) % 3],
        "sentence": f"{index} the {rng.choice(WORDS)} _ was there",
    }


def load(**_: object) -> datasets.DatasetDict:
    rng = random.Random(0)
    documents = [_document(rng, index) for index in range(40)]
    test = documents[24:36]
    # Row 3 of the training split asks, in other letters, what row 0 of the test split asks.
    train = documents[:24]
    train[3] = {**train[3], "question": test[0]["question"].upper().replace(":", " -")}
    return datasets.DatasetDict(
        {
            "train": datasets.Dataset.from_list(train),
            "validation": datasets.Dataset.from_list(documents[36:]),
            "test": datasets.Dataset.from_list(test),
        }
    )


def shuffled(dataset: datasets.Dataset) -> datasets.Dataset:
    """Choices in another order at each call, as tasks do that shuffle without a seed."""
    return datasets.Dataset.from_list([_shuffled(doc) for doc in dataset])


def _shuffled(doc: dict) -> dict:
    choices = random.sample(doc["choices"], 3)
    return {**doc, "choices": choices, "gold": choices.index(doc["answer"])}


def blanks(doc: dict) -> list[str]:
    return [doc["sentence"].split("_")[0] + choice for choice in doc["choices"]]


def ending(doc: dict) -> str:
    return doc["sentence"].split("_")[1].strip()


def judged(doc: dict, results: list[str]) -> dict:
    """A metric that knows by itself what is right."""
    return {"exact_match": float(doc["answer"] in results[0])}


def shortened(dataset: datasets.Dataset) -> datasets.Dataset:
    """The first documents."""
    return dataset.select(range(min(8, len(dataset))))
