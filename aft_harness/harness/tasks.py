"""lm-eval's tasks by name, each loaded once however often it is asked for.

Knows lm-eval's task manager and task objects. Whoever changes a task object puts it back, see `unchanged`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import lm_eval.utils
from lm_eval.tasks import TaskManager

from aft_harness.boosters import documents
from aft_harness.errors import TaskError
from aft_harness.harness.notices import without_notices
from aft_harness.harness.selection import PromptFormat, TaskSelection
from aft_harness.slices import ALL, Slice
from aft_harness.text import reason

FEWSHOT_SEED = 1234
"""lm-eval's own default, so that few-shot examples are drawn as in evaluation."""


class Tasks:
    """The tasks that lm-eval knows, and those of further folders."""

    def __init__(self, include_path: Sequence[str | Path] = ()) -> None:
        """Nothing is indexed or loaded yet.

        Args:
            include_path: Folders with further task YAMLs.

        Raises:
            TaskError: A folder that does not exist.
        """
        self.include_path = tuple(map(str, include_path))
        for folder in self.include_path:
            if not Path(folder).is_dir():
                raise TaskError(f"{folder}: no such task folder")
        self._loaded: dict[str, dict[str, Any]] = {}

    @cached_property
    def manager(self) -> Any:
        """lm-eval's index of tasks."""
        return _indexed(self.include_path)

    def add(self, name: str, task: Any) -> None:
        """Makes a task object known that no YAML describes."""
        self._loaded[name] = {"tasks": {name: task}}

    def check(self, names: Sequence[str]) -> None:
        """Refuses names of no task, group or tag, before anything is loaded.

        Raises:
            TaskError: With the names that are nearest.
        """
        for name in names:
            if name in self._loaded:
                continue
            if name not in self.manager.all_tasks and not name.endswith((".yaml", ".yml")):
                near = difflib.get_close_matches(name, self.manager.all_tasks, n=3)
                hint = f"did you mean {', '.join(near)}?" if near else "`lm_eval ls tasks` lists them"
                raise TaskError(f"unknown task {name!r}; {hint}")

    def load(self, names: Sequence[str]) -> dict[str, Any]:
        """Task objects and groups, in the form that `lm_eval.evaluator.evaluate` takes.

        Raises:
            TaskError: An unknown task, or data that cannot be loaded.
        """
        self.check(names)
        merged: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
        for name in names:
            if name not in self._loaded:
                self._loaded[name] = self._load(name)
            for part, found in merged.items():
                found.update(self._loaded[name].get(part, {}))
        return merged

    def leaves(self, names: Sequence[str]) -> dict[str, Any]:
        """Task objects by name, groups and tags unfolded into their tasks."""
        return dict(self.load(names)["tasks"])

    def select(self, selections: Sequence[TaskSelection]) -> list[tuple[TaskSelection, Any]]:
        """Selections with their task objects, groups unfolded: each member gets the group's limit, weight and rows.

        A task that is selected by its own name and as a member of a group is taken once, as its own name says.

        Raises:
            TaskError: See `load`.
        """
        found: dict[str, tuple[TaskSelection, Any]] = {}
        for selection in selections:
            for name, task in self.leaves([selection.name]).items():
                if name not in found or selection.name == name:
                    found[name] = (replace(selection, name=name), task)
        return list(found.values())

    def _load(self, name: str) -> dict[str, Any]:
        known = {task: loaded for group in self._loaded.values() for task, loaded in group["tasks"].items()}
        if name in known:
            return {"tasks": {name: known[name]}}
        try:
            with without_notices():
                return dict(self.manager.load(name))
        except Exception as error:  # whatever a task's own code or the datasets library raises
            why = reason(error)
            raise TaskError(f"task {name} cannot be loaded ({type(error).__name__}: {why})") from error


def evaluated_documents(
    task: Any, docs: Slice = ALL, limit: int | None = None
) -> Iterator[tuple[Mapping[str, Any], set[str]]]:
    """The documents that a task evaluates, each with every hash that it could have been recorded under.

    Args:
        task: The task object of lm-eval.
        docs: Those of a slice.
        limit: So many of them.
    """
    for doc in docs.of(list(task.eval_docs))[:limit]:
        yield doc, documents.possible_hashes(doc, str(task.doc_to_text(doc)))


def configure(task: Any, num_fewshot: int | None) -> int:
    """Sets the number of few-shot examples by lm-eval's own rule, and their seed.

    Returns:
        The number that is in force: a task whose YAML says 0 keeps it.
    """
    if num_fewshot is not None and task.config.num_fewshot != 0:
        task.set_config("num_fewshot", num_fewshot)
    elif task.config.num_fewshot is None:
        task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(FEWSHOT_SEED)
    return int(task.config.num_fewshot)


def request_options(prompt_format: PromptFormat, lm: Any) -> dict[str, Any]:
    """What `build_all_requests` is told of the prompt format."""
    chat = prompt_format.apply_chat_template
    return {
        "system_instruction": prompt_format.system_instruction,
        "apply_chat_template": chat,
        "fewshot_as_multiturn": prompt_format.multiturn,
        "chat_template": lm.apply_chat_template if chat else None,
        "tokenizer_name": lm.tokenizer_name if chat else "",
    }


@contextmanager
def unchanged(task: Any) -> Iterator[None]:
    """Gives a task object back as it was: its splits, its few-shot settings and its requests."""
    config = {key: getattr(task.config, key) for key in ("test_split", "num_fewshot")}
    pool = task.fewshot_cfg.split
    try:
        yield
    finally:
        for key, value in config.items():
            task.set_config(key, value)
        task.fewshot_cfg.split = pool
        task._instances = None


@contextmanager
def compiled_templates() -> Iterator[None]:
    """In this block each template of a prompt, choice or target is compiled once, and not for every document."""
    environment = lm_eval.utils.env
    compile_template = environment.from_string
    environment.from_string = lru_cache(maxsize=4096)(compile_template)
    try:
        yield
    finally:
        environment.from_string = compile_template


@lru_cache(maxsize=4)
def _indexed(include_path: tuple[str, ...]) -> Any:
    # Indexing lm-eval's thousands of YAML files takes seconds.
    return TaskManager(include_path=list(include_path) or None)
