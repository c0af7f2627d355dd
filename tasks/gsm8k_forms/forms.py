"""Two forms of the real GSM8K questions that tell more of a small model than generation does.

This module knows the questions' published solutions: where their intermediate results stand, and how a reader would
write them without the marks for a calculator. The YAML files beside it say how lm-eval asks them. There is one fixed
seed and there are no knobs, so the documents are the same on every machine.
"""

from __future__ import annotations

import math
import random
import re
from typing import Any

import datasets

SEED = "gsm8k_choice 1.0"
WRONG = 3
_CALCULATION = re.compile(r"<<[^<>]*=([^<>=]*)>>")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def with_choices(rows: datasets.Dataset) -> datasets.Dataset:
    """Give each question four numbers to choose from; in every four questions each position is right once."""
    positions: list[int] = []
    for start in range(0, len(rows), 4):
        rng = random.Random(f"{SEED}/{start}")
        positions += sorted(range(4), key=lambda _: rng.random())

    def choose(row: dict[str, Any], index: int) -> dict[str, Any]:
        right = final_answer(row["answer"])
        choices = wrong_answers(row["answer"], random.Random(f"{SEED}/{row['question']}"))
        choices.insert(positions[index], right)
        return {"choices": choices, "gold": positions[index]}

    return rows.map(choose, with_indices=True)


def with_solution(rows: datasets.Dataset) -> datasets.Dataset:
    """Give each question its solution as a reader would write it."""
    return rows.map(lambda row: {"solution": solution(row["answer"])})


def bits_per_byte(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """Bits for each byte of one document's solution; lm-eval takes the mean over documents."""
    ((loglikelihood, _),) = results
    return {"bits_per_byte": -loglikelihood / math.log(2) / len(doc["solution"].encode())}


def final_answer(answer: str) -> str:
    """The number after the four hash marks, without separators."""
    return answer.rsplit("####", 1)[1].strip().replace(",", "")


def solution(answer: str) -> str:
    """The steps and the answer, without the marks for a calculator."""
    steps, _ = _CALCULATION.sub("", answer).rsplit("####", 1)
    return f"{steps.strip()}\nThe answer is {final_answer(answer)}."


def wrong_answers(answer: str, rng: random.Random) -> list[str]:
    """Three numbers that are not the answer.

    Intermediate results of the solution first, the last ones before the answer soonest: who stops too early or loses a
    step arrives there. What is lacking is filled with near misses: the answer with another last digit, ten times as
    large, halved, doubled.
    """
    right = float(final_answer(answer))
    found: list[str] = []
    steps = [number for text in _CALCULATION.findall(answer) if (number := _plain(text)) is not None]
    for number in [*dict.fromkeys(reversed(steps)), *_near_misses(right, rng)]:
        if float(number) != right and all(float(number) != float(other) for other in found):
            found.append(number)
        if len(found) == WRONG:
            break
    return sorted(found, key=lambda _: rng.random())


def _near_misses(right: float, rng: random.Random) -> list[str]:
    scaled = [right * 10, right * 2, right / 2]
    digits = [10 * (right // 10) + digit for digit in range(10)]
    kept = [value for value in scaled if value == int(value)]
    mixed = sorted([*kept, *digits[1:]], key=lambda _: rng.random())
    return [f"{value:.0f}" for value in mixed]


def _plain(text: str) -> str | None:
    """A number as an answer would write it; None for what is no number."""
    text = text.replace(",", "").replace("$", "").strip()
    if not _NUMBER.fullmatch(text):
        return None
    value = float(text)
    return f"{value:.0f}" if value == int(value) else f"{round(value, 2):g}"
