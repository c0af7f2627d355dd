"""The documents of GSM8K-Easy: seeded word problems of one or two steps, with four equations to choose from.

This module knows how a problem, its solution and its wrong answers are made; the YAML files beside it say how lm-eval
asks them. Everything is drawn from one fixed seed, so the documents are the same on every machine; there are no knobs.

A document's choices are the right equation, the same equation with a near miss for a result, and such a pair again for
an equation with one operation mistaken. Choosing well therefore takes both: reading the story and calculating. The two
equations of a pair differ in their last digit only, which lets lm-eval score both with one forward pass.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import datasets

SEED = "gsm8k_easy 1.0"
SPLITS = {"train": 1000, "validation": 200, "test": 500}
LARGEST = 320
"""No step of a right or mistaken calculation goes above this."""

NAMES = (
    *("Ada", "Ben", "Carla", "Dan", "Ella", "Finn", "Grace", "Hugo", "Iris", "Jack", "Kate", "Leo"),
    *("Maya", "Noah", "Olive", "Paul", "Rosa", "Sam", "Tara", "Uma", "Victor", "Wendy", "Yusuf", "Zoe"),
)
THINGS = (
    *("apples", "balls", "books", "buttons", "cards", "coins", "cups", "eggs", "flowers", "keys"),
    *("lemons", "nuts", "pencils", "plums", "rings", "shells", "stamps", "stones", "tickets", "toys"),
)

_Item = TypeVar("_Item")


class Template(NamedTuple):
    """A kind of problem: its story, and the operations that lead from `a` over `b` (and `c`) to the answer.

    `mistaken` are the same operations misread. Templates come in pairs whose operations are each other's mistake, so
    which operation is right cannot be guessed without the story. A second operation is always + or -, so that an
    equation read from left to right needs no parentheses.
    """

    story: str
    operations: str
    mistaken: str
    ranges: tuple[tuple[int, int], ...]


# Lowest and highest a, b and c: wide enough that no template runs out of numbers.
_SUM = ((3, 29), (2, 19))
_PRODUCT = ((2, 80), (2, 9))
_SUMS = (*_SUM, (2, 9))
_PRODUCT_SUM = ((2, 12), (2, 9), (2, 9))
_QUOTIENT_SUM = ((4, 60), (2, 9), (2, 9))

TEMPLATES = (
    Template("{name} had {a} {things} and found {b}. How many now?", "+", "-", _SUM),
    Template("{name} had {a} {things} and lost {b}. How many now?", "-", "+", _SUM),
    Template("{name} has {a} {things}, {other} has {b}. How many together?", "+", "-", _SUM),
    Template("{name} has {a} {things}, {other} has {b}. How many more has {name}?", "-", "+", _SUM),
    Template("{name} sold {a} {things} and kept {b}. How many at first?", "+", "-", _SUM),
    Template("{name} won {b} {things} and has {a} now. How many at first?", "-", "+", _SUM),
    Template("There are {a} red and {b} blue {things}. How many in all?", "+", "-", _SUM),
    Template("Of {a} {things}, {b} are red. How many are not?", "-", "+", _SUM),
    Template("{name} fills {b} bags with {a} {things} each. How many in all?", "*", "/", _PRODUCT),
    Template("{name} fills {b} bags with {a} {things} in all. How many in each?", "/", "*", _PRODUCT),
    Template("One box holds {a} {things}. How many do {b} boxes hold?", "*", "/", _PRODUCT),
    Template("{b} boxes hold {a} {things}. How many does one box hold?", "/", "*", _PRODUCT),
    Template("{name} sells {a} {things} a day. How many in {b} days?", "*", "/", _PRODUCT),
    Template("{name} sells {a} {things} in {b} days. How many a day?", "/", "*", _PRODUCT),
    Template("{name} had {a} {things}, found {b} and lost {c}. How many now?", "+-", "--", _SUMS),
    Template("{name} had {a} {things}, lost {b} and sold {c}. How many now?", "--", "+-", _SUMS),
    Template("{name} has {c} {things} and buys {b} bags of {a}. How many now?", "*+", "*-", _PRODUCT_SUM),
    Template("{name} buys {b} bags of {a} {things} and sells {c}. How many now?", "*-", "*+", _PRODUCT_SUM),
    Template("{a} {things} fill {b} bags. {name} adds {c} to one. How many in it?", "/+", "/-", _QUOTIENT_SUM),
    Template("{a} {things} fill {b} bags. {name} takes {c} from one. How many in it?", "/-", "/+", _QUOTIENT_SUM),
)


def load(**_: object) -> datasets.DatasetDict:
    """Return all splits, as lm-eval's `custom_dataset`; the metadata and model arguments it passes change nothing."""
    return datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in documents().items()})


def load_sums(**_: object) -> datasets.DatasetDict:
    """Return the documents with one sum or one difference, of all splits: the easiest level."""
    single = {index for index, template in enumerate(TEMPLATES) if template.operations in ("+", "-")}
    chosen = {name: [row for row in rows if row["template"] in single] for name, rows in documents().items()}
    return datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in chosen.items()})


def documents() -> dict[str, list[dict[str, Any]]]:
    """Return the documents of each split.

    Returns:
        Per split rows with `question`, `choices` (four equations), `gold` (index of the right one), `solution` (left
        side of the right equation, an arithmetic expression), `answer` (its value) and `template` (index of its kind).
        The kinds take turns, so any first n documents are a fair sample.
    """
    rng = random.Random(SEED)
    problems = _problems(rng)
    splits = {}
    for split, size in SPLITS.items():
        positions = _shuffled(rng, [index % 4 for index in range(size)])
        splits[split] = [_document(rng, next(problems), gold) for gold in positions]
    return splits


def _document(rng: random.Random, problem: dict[str, Any], gold: int) -> dict[str, Any]:
    choices = _shuffled(rng, problem.pop("wrong"))
    choices.insert(gold, f"{problem['solution']} = {problem['answer']}")
    return {**problem, "choices": choices, "gold": gold}


def _problems(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Yield problems, the templates taking turns, no template with the same numbers twice whatever its names."""
    seen = set()
    while True:
        for index, template in enumerate(TEMPLATES):
            problem = None
            while problem is None:
                numbers = tuple(low + int(rng.random() * (high - low + 1)) for low, high in template.ranges)
                if (index, numbers) not in seen:
                    problem = _problem(rng, template, numbers)
            seen.add((index, numbers))
            yield {**problem, "template": index}


def _problem(rng: random.Random, template: Template, numbers: Sequence[int]) -> dict[str, Any] | None:
    """Tell a template's story with these numbers; None if they don't fit it and its mistaken reading."""
    right, mistaken = _value(numbers, template.operations), _value(numbers, template.mistaken)
    if right is None or mistaken is None:
        return None
    near, mistaken_near = _near_miss(rng, right), _near_miss(rng, mistaken)
    if len({right, mistaken, near, mistaken_near}) < 4:
        return None
    name, other = _shuffled(rng, NAMES)[:2]
    fields = dict(zip("abc", numbers, strict=False))
    solution, misread = _expression(numbers, template.operations), _expression(numbers, template.mistaken)
    return {
        "question": template.story.format(name=name, other=other, things=_pick(rng, THINGS), **fields),
        "solution": solution,
        "answer": right,
        "wrong": [f"{solution} = {near}", f"{misread} = {mistaken}", f"{misread} = {mistaken_near}"],
    }


def _value(numbers: Sequence[int], operations: str) -> int | None:
    """Calculate from left to right; None unless every step is a whole number from 1 to `LARGEST`."""
    value = numbers[0]
    for operation, number in zip(operations, numbers[1:], strict=True):
        if operation == "/" and value % number:
            return None
        value = {"+": value + number, "-": value - number, "*": value * number, "/": value // number}[operation]
        if not 1 <= value <= LARGEST:
            return None
    return value


def _near_miss(rng: random.Random, value: int) -> int:
    """Return a number up to 3 away that differs in the last digit only."""
    return _pick(rng, [n for n in range(max(1, value - 3), value + 4) if n != value and n // 10 == value // 10])


def _expression(numbers: Sequence[int], operations: str) -> str:
    steps = [f"{operation} {number}" for operation, number in zip(operations, numbers[1:], strict=True)]
    return " ".join([str(numbers[0]), *steps])


# Of the random module only random() promises the same values in every Python version, so both build on that.
def _pick(rng: random.Random, items: Sequence[_Item]) -> _Item:
    return items[int(rng.random() * len(items))]


def _shuffled(rng: random.Random, items: Sequence[_Item]) -> list[_Item]:
    return sorted(items, key=lambda _: rng.random())
