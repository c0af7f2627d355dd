"""The same questions in five forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from lm_eval.tasks import TaskManager

from aft_harness.harness.suites import folder
from aft_harness.harness.tasks import Tasks

FORMS = ("question", "stem", "qa", "dialogue", "lettered")
DATA = ("arc_easy", "openbookqa", "commonsense_qa")


@pytest.fixture(scope="module")
def tasks(real_data: Path) -> dict[str, Any]:
    found: dict[str, Any] = Tasks([folder()]).leaves([f"{data}_{form}" for data in DATA for form in FORMS])
    return found


@pytest.mark.parametrize("data", DATA)
def test_every_form_asks_the_same_documents(tasks: dict[str, Any], data: str) -> None:
    documents = [list(tasks[f"{data}_{form}"].eval_docs) for form in FORMS]
    assert len(documents[0]) > 200 and all(each == documents[0] for each in documents)
    for form in FORMS:
        task = tasks[f"{data}_{form}"]
        doc = documents[0][5]
        prompt, choices, gold = task.doc_to_text(doc), task.doc_to_choice(doc), task.doc_to_target(doc)
        assert prompt.count(doc["question"]) == 1
        assert choices[gold] == (doc["letters"] if form == "lettered" else doc["options"])[doc["gold"]]
        assert all((option in prompt) == (form == "lettered") for option in doc["options"])
        ends = {"question": "\nAnswer:", "stem": doc["question"], "qa": "\nA:", "dialogue": "\nAssistant:"}
        assert prompt.endswith(ends.get(form, "\nAnswer:"))


@pytest.mark.parametrize(("data", "form"), [("arc_easy", "question"), ("openbookqa", "stem")])
def test_one_form_is_the_stock_task(tasks: dict[str, Any], data: str, form: str) -> None:
    stock = TaskManager().load(data)["tasks"][data]
    ours = tasks[f"{data}_{form}"]
    stock_docs, our_docs = list(stock.eval_docs), list(ours.eval_docs)
    assert len(stock_docs) == len(our_docs)
    for theirs, doc in zip(stock_docs[:50], our_docs[:50], strict=True):
        assert stock.doc_to_text(theirs).strip() == ours.doc_to_text(doc)
        assert (stock.doc_to_choice(theirs), stock.doc_to_target(theirs)) == (ours.doc_to_choice(doc), doc["gold"])


def test_unanswered_rows_of_commonsense_qa_are_left_out(monkeypatch: pytest.MonkeyPatch, real_data: Path) -> None:
    task = Tasks([folder()]).leaves(["commonsense_qa_stem"])["commonsense_qa_stem"]
    load: Any = task.config.custom_dataset
    rows = datasets.load_dataset("tau/commonsense_qa")
    hidden = rows["test"].map(lambda row: {"answerKey": ""})
    without = datasets.DatasetDict({**rows, "test": hidden})
    monkeypatch.setitem(load.__globals__["datasets"].__dict__, "load_dataset", lambda *names: without)
    assert [row["question"] for row in load()["validation"]] == [
        each.strip() for each in rows["validation"]["question"]
    ]
    assert set(load()) == {"train", "validation"}
