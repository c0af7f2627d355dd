"""The text that home-made models are trained on: stories that calculate, equations, passages, questions with answers.

Knows rows of training splits and the world of GSM8K-Easy, and no model. Three rules decide what may be in the text:

- Nothing of a split that is evaluated. Rows whose question a task evaluates are dropped, wherever they come from.
- Nothing that a booster learns from: boosters of the study get the first rows of a training split (`LEARNED`), the text
  gets the others.
- GSM8K-Easy has 20 kinds of stories, which its test documents share with its training documents. Further stories of the
  same kinds are invented here, with numbers that no test, validation or booster's document has in a story of that kind.

The stories are told without any words around them, `STORY EXPRESSION = RESULT`, while GSM8K-Easy asks `Question: ...
Answer:`. Questions of other data sets are in that form, and answered in words. So a model of this text has been shown
what GSM8K-Easy asks for, but never in the form in which it is asked.
"""

from __future__ import annotations

import importlib.util
import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aft_harness.boosters.documents import possible_hashes
from aft_harness.harness.suites import folder
from aft_harness.harness.tasks import Tasks, evaluated_documents

from .plans import LEARNED

QUESTIONS = ("arc_easy", "openbookqa", "commonsense_qa_question")
"""Tasks whose training rows are written as `Question: ... Answer: ...`."""

EVALUATED = ("gsm8k_easy", "arc_easy", "plain_text", "hellaswag", "piqa", "gsm8k_solution", *QUESTIONS[1:])
"""Tasks whose evaluated questions are not in the text: those of the study, and all that rows are taken from."""

Numbers = tuple[int, ...]


@dataclass(frozen=True)
class Amounts:
    """How many documents of each kind the text has, at most.

    Attributes:
        stories: Invented stories with their solution.
        equations: Lines of equations.
        passages: How-to passages and captions (HellaSwag), and ways to do something (PIQA).
        solutions: Worked solutions of GSM8K.
        questions: Questions of each of `QUESTIONS`.
    """

    stories: int = 16_000
    equations: int = 2_000
    passages: int = 4_000
    solutions: int = 3_000
    questions: int = 600


def documents(amounts: Amounts, seed: int = 0) -> dict[str, list[str]]:
    """The text, by kind of document.

    Args:
        amounts: Of each kind.
        seed: Of what is drawn.

    Raises:
        AftError: Rows of a task cannot be loaded.
    """
    tasks = Tasks([folder()])
    asked = {digest for task in EVALUATED for digest in _evaluated(tasks, task)}
    rng = random.Random(f"home-made {seed}")
    world = World.of(tasks)
    easy = [f"{row['question']} {row['solution']} = {row['answer']}" for row in _rest(tasks, "gsm8k_easy", asked)]
    found = {
        "stories": [*easy, *itertools.islice(world.stories(rng), max(amounts.stories - len(easy), 0))],
        "equations": list(itertools.islice(world.equations(rng), amounts.equations)),
        "passages": [
            *(f"{row['query']} {row['choices'][row['gold']]}" for row in _rest(tasks, "hellaswag", asked)),
            *(f"{row['goal']} {row[('sol1', 'sol2')[row['label']]]}" for row in _rest(tasks, "piqa", asked)),
        ][: amounts.passages],
        "solutions": [f"{row['question']}\n{row['solution']}" for row in _rest(tasks, "gsm8k_solution", asked)][
            : amounts.solutions
        ],
        "questions": [text for name in QUESTIONS for text in list(_questions(tasks, name, asked))[: amounts.questions]],
    }
    return {kind: texts for kind, texts in found.items() if texts}


@dataclass(frozen=True)
class World:
    """The world of GSM8K-Easy, without the numbers that its documents have.

    Attributes:
        problems: The module that makes the documents.
        numbers: By kind of story, the numbers that are free.
    """

    problems: Any
    numbers: Sequence[Sequence[Numbers]]

    @classmethod
    def of(cls, tasks: Tasks) -> World:
        """The world with what is free in it."""
        dataset = tasks.leaves(["gsm8k_easy"])["gsm8k_easy"].dataset
        learned = list(dataset["train"])[: LEARNED["gsm8k_easy"]]
        taken = {place_of(row) for row in (*learned, *dataset["validation"], *dataset["test"])}
        problems = _module("gsm8k_easy/problems.py")
        free = []
        for kind, template in enumerate(problems.TEMPLATES):
            every = itertools.product(*(range(low, high + 1) for low, high in template.ranges))
            readings = (template.operations, template.mistaken)
            fits = [each for each in every if all(problems._value(each, reading) for reading in readings)]
            free.append([each for each in fits if (kind, each) not in taken])
        return cls(problems, free)

    def stories(self, rng: random.Random) -> Iterator[str]:
        """Stories with their solution; the kinds take turns, and numbers come again with other names and things."""
        for kind, template in itertools.cycle(enumerate(self.problems.TEMPLATES)):
            problem = None
            while problem is None:  # a few numbers leave no room for four different choices
                problem = self.problems._problem(rng, template, rng.choice(self.numbers[kind]))
            yield f"{problem['question']} {problem['solution']} = {problem['answer']}"

    def equations(self, rng: random.Random) -> Iterator[str]:
        """Lines of eight equations with numbers of stories, of operations that are right there or mistaken."""
        while True:
            yield "\n".join(self._equation(rng) for _ in range(8))

    def _equation(self, rng: random.Random) -> str:
        kind = rng.randrange(len(self.numbers))
        template, numbers = self.problems.TEMPLATES[kind], rng.choice(self.numbers[kind])
        operations = rng.choice((template.operations, template.mistaken))
        return f"{self.problems._expression(numbers, operations)} = {self.problems._value(numbers, operations)}"


def place_of(row: Mapping[str, Any]) -> tuple[int, Numbers]:
    """A document of GSM8K-Easy as its kind of story and the numbers in it."""
    return row["template"], tuple(map(int, re.findall(r"\d+", row["solution"])))


def _evaluated(tasks: Tasks, name: str) -> Iterator[str]:
    """Every hash that a document of a task could be known by."""
    for _, hashes in evaluated_documents(tasks.leaves([name])[name]):
        yield from hashes


def _rest(tasks: Tasks, name: str, asked: set[str]) -> Iterator[Mapping[str, Any]]:
    """Training rows that neither boosters learn from nor anything evaluates, as the task reads them."""
    task = tasks.leaves([name])[name]
    rows = list(task.training_docs())
    kept = {digest for row in rows[: LEARNED.get(name, 0)] for digest in possible_hashes(row, _question(task, row))}
    for row in rows[LEARNED.get(name, 0) :]:
        if not (asked | kept) & possible_hashes(row, _question(task, row)):
            yield row


def _questions(tasks: Tasks, name: str, asked: set[str]) -> Iterator[str]:
    task = tasks.leaves([name])[name]
    for row in _rest(tasks, name, asked):
        choices, right = task.doc_to_choice(row), task.doc_to_target(row)
        yield f"Question: {_question(task, row)}\nAnswer: {choices[int(right)]}"


def _question(task: Any, row: Mapping[str, Any]) -> str:
    """A row's question, without the words that a task puts around it."""
    text = str(task.doc_to_text(row))
    return text.removeprefix("Question: ").removesuffix("\nAnswer:")


def _module(path: str) -> Any:
    """A module of a task suite, which is no part of a package."""
    place = folder() / path
    spec = importlib.util.spec_from_file_location(place.stem, place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
