"""GSM8K-Easy: its answers are right, its splits apart, its choices fair, and lm-eval scores it as it should."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import operator
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from lm_eval.api.model import LM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from scipy.stats import chisquare

from aft_harness.harness.suites import folder

# The documents of version 1.0. Whoever changes them has to raise the version in both YAML files.
DIGEST = "050dd864c99dc3bc4abdc783683688cda40baa0e161f1df36dc819c00dfb36a6"

SIZES = {"train": 1000, "validation": 200, "test": 500}
OPERATIONS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}

# How a reader solves the stories, told apart by their words: independent of what a document says of itself.
READER: dict[str, Callable[..., Fraction]] = {
    r"had (\d+) \w+ and found (\d+)\. How many now": lambda a, b: a + b,
    r"had (\d+) \w+ and lost (\d+)\. How many now": lambda a, b: a - b,
    r"has (\d+) \w+, \w+ has (\d+)\. How many together": lambda a, b: a + b,
    r"has (\d+) \w+, \w+ has (\d+)\. How many more": lambda a, b: a - b,
    r"sold (\d+) \w+ and kept (\d+)\. How many at first": lambda a, b: a + b,
    r"won (\d+) \w+ and has (\d+) now\. How many at first": lambda won, now: now - won,
    r"are (\d+) red and (\d+) blue \w+\. How many in all": lambda a, b: a + b,
    r"Of (\d+) \w+, (\d+) are red\. How many are not": lambda a, b: a - b,
    r"fills (\d+) bags with (\d+) \w+ each\. How many in all": lambda bags, each: bags * each,
    r"fills (\d+) bags with (\d+) \w+ in all\. How many in each": lambda bags, total: total / bags,
    r"One box holds (\d+) \w+\. How many do (\d+) boxes hold": lambda each, boxes: each * boxes,
    r"(\d+) boxes hold (\d+) \w+\. How many does one box hold": lambda boxes, total: total / boxes,
    r"sells (\d+) \w+ a day\. How many in (\d+) days": lambda each, days: each * days,
    r"sells (\d+) \w+ in (\d+) days\. How many a day": lambda total, days: total / days,
    r"had (\d+) \w+, found (\d+) and lost (\d+)\. How many now": lambda a, b, c: a + b - c,
    r"had (\d+) \w+, lost (\d+) and sold (\d+)\. How many now": lambda a, b, c: a - b - c,
    r"has (\d+) \w+ and buys (\d+) bags of (\d+)\. How many now": lambda had, bags, each: had + bags * each,
    r"buys (\d+) bags of (\d+) \w+ and sells (\d+)\. How many now": lambda bags, each, sold: bags * each - sold,
    r"(\d+) \w+ fill (\d+) bags\. \w+ adds (\d+) to one\. How many in it": lambda a, b, c: a / b + c,
    r"(\d+) \w+ fill (\d+) bags\. \w+ takes (\d+) from one\. How many in it": lambda a, b, c: a / b - c,
}


def read(question: str) -> Fraction:
    """Solve a story by its words."""
    found = [(match, solve) for words, solve in READER.items() if (match := re.search(words, question))]
    assert len(found) == 1, question
    match, solve = found[0]
    return solve(*map(Fraction, match.groups()))


def calculate(expression: str) -> Fraction:
    """Evaluate an arithmetic expression exactly."""

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            return Fraction(OPERATIONS[type(node.op)](value(node.left), value(node.right)))
        assert isinstance(node, ast.Constant) and isinstance(node.value, int)
        return Fraction(node.value)

    return value(ast.parse(expression, mode="eval").body)


def operations(expression: str) -> str:
    return "".join(re.findall(r"[-+*/]", expression))


def digest(splits: dict[str, list[dict[str, Any]]]) -> str:
    return hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()


@pytest.fixture(scope="module")
def problems() -> ModuleType:
    spec = importlib.util.spec_from_file_location("problems", folder() / "gsm8k_easy" / "problems.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def splits(problems: ModuleType) -> dict[str, list[dict[str, Any]]]:
    documents: dict[str, list[dict[str, Any]]] = problems.documents()
    return documents


@pytest.fixture(scope="module")
def every(splits: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [document for rows in splits.values() for document in rows]


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager(include_path=str(folder()), include_defaults=False)


def test_splits_are_whole_and_apart(splits: dict[str, list[dict[str, Any]]], every: list[dict[str, Any]]) -> None:
    assert {split: len(rows) for split, rows in splits.items()} == SIZES
    total = sum(SIZES.values())
    assert len({document["question"] for document in every}) == total
    # The same story with other names would be the same problem.
    assert len({(document["template"], document["solution"]) for document in every}) == total
    for rows in splits.values():
        assert len(set(Counter(document["template"] for document in rows).values())) == 1


def test_gold_is_the_answer(every: list[dict[str, Any]]) -> None:
    for document in every:
        answer = read(document["question"])
        assert answer == document["answer"] == calculate(document["solution"]), document
        assert document["choices"][document["gold"]] == f"{document['solution']} = {document['answer']}"


def test_wrong_choices_are_wrong_and_plausible(every: list[dict[str, Any]]) -> None:
    for document in every:
        sides = [choice.split(" = ") for choice in document["choices"]]
        assert len({int(result) for _, result in sides}) == 4, document
        true = [calculate(left) == int(result) for left, result in sides]
        assert sorted(true) == [False, False, True, True] and true[document["gold"]], document
        for left, result in sides:
            assert re.findall(r"\d+", left) == re.findall(r"\d+", document["solution"])
            assert 1 <= abs(calculate(left) - int(result)) <= 3 or calculate(left) == int(result)
            # What one shared forward pass rests on: the two results of an equation differ in their last digit only.
            assert str(calculate(left))[:-1] == result[:-1]


def test_position_of_the_gold_is_no_clue(splits: dict[str, list[dict[str, Any]]]) -> None:
    for rows in splits.values():
        counts = Counter(document["gold"] for document in rows)
        assert set(counts.values()) == {len(rows) // 4}
        for operation in "+-*/":
            positions = Counter(row["gold"] for row in rows if operations(row["solution"]) == operation)
            assert chisquare([positions[position] for position in range(4)]).pvalue > 0.01


def test_operation_is_no_clue(splits: dict[str, list[dict[str, Any]]]) -> None:
    for rows in splits.values():
        pairs: Counter[tuple[str, str]] = Counter()
        for row in rows:
            right = operations(row["solution"])
            (wrong,) = {operations(choice) for choice in row["choices"]} - {right}
            pairs[right, wrong] += 1
        assert all(pairs[wrong, right] == count for (right, wrong), count in pairs.items())


def test_prompts_are_short(every: list[dict[str, Any]]) -> None:
    # Words, digits and signs, plus a token for the space before each number: an upper bound but for a rare name.
    pieces = [
        len(re.findall(r"\d|[^\W\d]+|[^\w\s]", text)) + len(re.findall(r"\d+", text))
        for document in every
        for text in [f"Question: {document['question']}\nAnswer: {max(document['choices'], key=len)}"]
    ]
    assert max(pieces) <= 60


def test_documents_are_the_same_everywhere(splits: dict[str, list[dict[str, Any]]], problems: ModuleType) -> None:
    assert problems.__file__ is not None
    program = (
        "import hashlib, json, problems\n"
        "print(hashlib.sha256(json.dumps(problems.documents(), sort_keys=True).encode()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(problems.__file__).parent,
        env={**os.environ, "PYTHONHASHSEED": "123", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == digest(splits) == DIGEST


def test_lm_eval_loads_both_tasks_by_their_tag(manager: TaskManager, splits: dict[str, list[dict[str, Any]]]) -> None:
    tasks = manager.load("gsm8k_easy_all")["tasks"]
    assert set(tasks) == {"gsm8k_easy", "gsm8k_easy_gen"}
    for task in tasks.values():
        assert task.VERSION == task.config.metadata["version"] == 1.0
        assert {split: list(task.dataset[split]) for split in task.dataset} == splits
        assert list(task.eval_docs) == splits["test"]


def test_the_easiest_level_is_one_sum_or_difference(
    manager: TaskManager, splits: dict[str, list[dict[str, Any]]]
) -> None:
    task = manager.load("gsm8k_sums_gen")["tasks"]["gsm8k_sums_gen"]
    assert {split: len(rows) for split, rows in task.dataset.items()} == {"train": 400, "validation": 80, "test": 200}
    for split, rows in task.dataset.items():
        expected = [row for row in splits[split] if re.fullmatch(r"\d+ [+-] \d+", row["solution"])]
        assert list(rows) == expected


def test_model_arguments_do_not_reach_the_documents(splits: dict[str, list[dict[str, Any]]]) -> None:
    metadata = {"pretrained": "model", "dtype": "float32", "seed": 7, "split": "none"}
    manager = TaskManager(include_path=str(folder()), include_defaults=False, metadata=metadata)
    task = manager.load("gsm8k_easy")["tasks"]["gsm8k_easy"]
    assert list(task.eval_docs) == splits["test"]


def test_prompts_are_what_the_documentation_shows(
    manager: TaskManager, splits: dict[str, list[dict[str, Any]]]
) -> None:
    for task in manager.load("gsm8k_easy_all")["tasks"].values():
        task.build_all_requests(limit=1)
        document = splits["test"][0]
        assert {instance.args[0] for instance in task.instances} == {f"Question: {document['question']}\nAnswer:"}
        if task.OUTPUT_TYPE == "multiple_choice":
            assert [instance.args[1] for instance in task.instances] == [f" {c}" for c in document["choices"]]
        else:
            assert task.doc_to_target(document) == document["choices"][document["gold"]]


class Scripted(LM):
    """Answers every question as a function of its document says."""

    def __init__(self, splits: dict[str, list[dict[str, Any]]], answer: Callable[[dict[str, Any]], str]) -> None:
        super().__init__()
        self.answers = {row["question"]: answer(row) for row in splits["test"]}

    def _answer(self, context: str) -> str:
        return self.answers[context.removeprefix("Question: ").removesuffix("\nAnswer:")]

    def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
        return [(float(r.args[1] == self._answer(r.args[0])), False) for r in requests]

    def generate_until(self, requests: Any) -> list[str]:
        return [self._answer(r.args[0]) for r in requests]

    def loglikelihood_rolling(self, requests: Any) -> list[float]:
        raise NotImplementedError


def score(manager: TaskManager, task: str, lm: LM) -> dict[str, float]:
    results = simple_evaluate(lm, tasks=[task], task_manager=manager, bootstrap_iters=0, log_samples=False)
    assert results is not None
    scores: dict[str, float] = results["results"][task]
    return scores


@pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (1, 0.0)])
def test_accuracy_is_of_the_gold(
    shift: int, expected: float, manager: TaskManager, splits: dict[str, list[dict[str, Any]]]
) -> None:
    lm = Scripted(splits, lambda row: f" {row['choices'][(row['gold'] + shift) % 4]}")
    scores = score(manager, "gsm8k_easy", lm)
    assert scores["acc,none"] == scores["acc_norm,none"] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" {solution} = {answer}", 1.0),  # the target itself
        (" {answer}", 1.0),
        (" {solution} = {answer}.", 1.0),
        ("{solution}={answer} of them", 1.0),
        (" There are 7 of each, so {answer} in all", 1.0),
        (" {answer} minus 0", 0.0),
        (" {answer}.5", 0.0),
        (" 1{answer}", 0.0),
        (" -{answer}", 0.0),
        (" many", 0.0),
        ("", 0.0),
    ],
)
def test_generation_is_scored_by_its_last_number(
    text: str, expected: float, manager: TaskManager, splits: dict[str, list[dict[str, Any]]]
) -> None:
    scores = score(manager, "gsm8k_easy_gen", Scripted(splits, lambda row: text.format(**row)))
    assert scores["exact_match,last-number"] == expected
