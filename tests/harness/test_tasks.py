from __future__ import annotations

from pathlib import Path
from typing import Any

import lm_eval.utils
import pytest
from harness_cases import TOYS, drawn
from lm_eval.tasks import TaskManager

from aft_harness.boosters.documents import text_hash, words_hash
from aft_harness.errors import TaskError
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.selection import PromptFormat, TaskSelection
from aft_harness.harness.tasks import (
    Tasks,
    compiled_templates,
    configure,
    evaluated_documents,
    request_options,
    unchanged,
)
from aft_harness.slices import Slice


def test_groups_unfold_and_folders_are_checked() -> None:
    loaded = Tasks([TOYS]).select([TaskSelection("toy_group", limit=3)])
    assert [(selection.name, selection.limit) for selection, _ in loaded] == [("toy_choice", 3), ("toy_text", 3)]
    with pytest.raises(TaskError, match="nowhere: no such task folder"):
        Tasks(["nowhere"])


@pytest.mark.parametrize("names", [["toy_group", "toy_choice"], ["toy_choice", "toy_group"]])
def test_a_task_selected_by_name_and_through_its_group_is_taken_once(names: list[str]) -> None:
    limits = {"toy_group": 3, "toy_choice": 7}
    selected = Tasks([TOYS]).select([TaskSelection(name, limits[name], weight=2.0) for name in names])
    taken = {selection.name: (selection.limit, selection.weight) for selection, _ in selected}
    assert len(selected) == 2 and taken == {"toy_choice": (7, 2.0), "toy_text": (3, 2.0)}
    assert [task.config.task for _, task in selected] == [selection.name for selection, _ in selected]


def test_each_task_is_loaded_once_however_often_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = TaskManager.load

    def spy(self: Any, name: Any) -> Any:
        loaded.append(name)
        return load(self, name)

    monkeypatch.setattr(TaskManager, "load", spy)
    tasks = Tasks([TOYS])
    assert not loaded
    first = tasks.leaves(["toy_group", "toy_mutual"])
    assert set(first) == {"toy_choice", "toy_text", "toy_mutual"}
    for names in (["toy_choice"], ["toy_mutual", "toy_group"], ["toy_text", "toy_choice"]):
        assert all(task is first[name] for name, task in tasks.leaves(names).items())
    assert loaded == ["toy_group", "toy_mutual"]
    groups = tasks.load(["toy_group"])
    assert set(groups["groups"]) == {"toy_group"} and set(groups["group_map"]["toy_group"]) == {
        "toy_choice",
        "toy_text",
    }


@pytest.mark.parametrize(
    ("name", "reason"),
    [("toy_choise", "unknown task 'toy_choise'; did you mean .*toy_choice"), ("zzz_qqq", "`lm_eval ls tasks` lists")],
)
def test_unknown_names_are_refused_before_anything_is_loaded(name: str, reason: str) -> None:
    tasks = Tasks([TOYS])
    for refuse in (tasks.check, tasks.load, tasks.leaves):
        with pytest.raises(TaskError, match=reason) as caught:
            refuse(["toy_choice", name])
        assert "\n" not in str(caught.value)
    assert not tasks._loaded


def test_a_task_that_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("task: broken\ndataset_path: no/such/dataset_anywhere\ntest_split: test\n")
    with pytest.raises(TaskError, match=r"^task broken cannot be loaded \(") as caught:
        Tasks([tmp_path]).load(["broken"])
    assert "\n" not in str(caught.value)


def test_evaluated_documents_come_with_every_hash_of_theirs() -> None:
    task = Tasks([TOYS]).leaves(["toy_choice"])["toy_choice"]
    test = list(task.test_docs())
    found = list(evaluated_documents(task))
    assert [doc for doc, _ in found] == test
    for doc, hashes in found:
        texts = (doc["question"], doc["sentence"], doc["question"] + " Answer:")
        assert hashes == {made(text) for text in texts for made in (text_hash, words_hash)}
    assert [doc for doc, _ in evaluated_documents(task, Slice(3, 9), limit=2)] == test[3:5]


@pytest.mark.parametrize(
    ("of_the_task", "asked", "expected"), [(None, None, 0), (None, 3, 3), (2, None, 2), (2, 3, 3), (0, 3, 0), (2, 0, 0)]
)
def test_shots_are_counted_by_lm_evals_rule(of_the_task: int | None, asked: int | None, expected: int) -> None:
    task = Tasks([TOYS]).leaves(["toy_choice"])["toy_choice"]
    task.set_config("num_fewshot", of_the_task)
    assert configure(task, asked) == expected == task.config.num_fewshot


def test_a_task_is_given_back_as_it_was() -> None:
    task = Tasks([TOYS]).leaves(["toy_choice"])["toy_choice"]
    before = (dict(task.dump_config()), task.fewshot_cfg.split)
    with pytest.raises(KeyboardInterrupt), unchanged(task):
        task.set_config("test_split", "train")
        configure(task, 5)
        task.fewshot_cfg.split = "validation"
        task.build_all_requests(limit=2)
        raise KeyboardInterrupt
    assert (dict(task.dump_config()), task.fewshot_cfg.split) == before and not task._instances


def test_drawing_leaves_no_trace_in_a_task(tiny_model: Any, tiny_tokenizer: Any) -> None:
    lm = SteeredHFLM(pretrained=tiny_model("llama", max_position_embeddings=2048), tokenizer=tiny_tokenizer)
    source = Tasks([TOYS])
    task = source.leaves(["toy_choice"])["toy_choice"]
    before = (dict(task.dump_config()), task.fewshot_cfg.split, list(task.eval_docs))
    drawn("toy_choice", lm, PromptFormat(num_fewshot=4), source=source, dev_docs=3)
    assert (dict(task.dump_config()), task.fewshot_cfg.split, list(task.eval_docs)) == before


def test_prompts_are_built_with_the_chat_template_only_where_asked_for(tiny_model: Any, tiny_tokenizer: Any) -> None:
    lm = SteeredHFLM(pretrained=tiny_model("llama"), tokenizer=tiny_tokenizer)
    plain = request_options(PromptFormat(system_instruction="Be short."), lm)
    assert plain["chat_template"] is None and plain["tokenizer_name"] == "" and not plain["apply_chat_template"]
    assert plain["system_instruction"] == "Be short." and plain["fewshot_as_multiturn"] is False
    chat = request_options(PromptFormat(apply_chat_template=True), lm)
    assert chat["chat_template"] == lm.apply_chat_template and chat["fewshot_as_multiturn"] is True


def test_a_template_is_compiled_once_inside_the_block_and_the_library_is_left_as_it_was() -> None:
    before = lm_eval.utils.env.from_string
    with compiled_templates():
        first, again = (lm_eval.utils.env.from_string("{{question}}?") for _ in range(2))
        assert first is again and lm_eval.utils.apply_template("{{a}}-{{b}}", {"a": 1, "b": 2}) == "1-2"
        assert lm_eval.utils.apply_template("{{a}}-{{b}}", {"a": 3, "b": 4}) == "3-4"
    assert lm_eval.utils.env.from_string == before
