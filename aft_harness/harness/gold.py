"""The right answer of a document: indices of choices, or a text that follows the prompt.

Knows how lm-eval's tasks name it. What a task hands to its scorer under the same name and is no answer (a constant,
unit tests, a dictionary) is refused: a booster would learn it.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2.meta
import lm_eval.utils

from aft_harness.errors import TaskError
from aft_harness.text import printable


class Gold:
    """Where the right answers of one task are found."""

    def __init__(self, task: Any, name: str, target_field: str | None = None) -> None:
        """Decides it, before any document is read.

        Args:
            task: The task object of lm-eval.
            name: Its name.
            target_field: The documents' field that holds the answer's text; None leaves it to the task.

        Raises:
            TaskError: What the task calls its target is no answer, or `target_field` does not apply.
        """
        self._task, self._name, self._field = task, name, target_field
        if task.OUTPUT_TYPE == "multiple_choice":
            self._check_choices()
        elif target_field is None:
            # Of a class that is no ConfigurableTask the target is what its code says.
            self._shots = _shot_target(task)
            self._check_text()

    def choices(self, doc: Mapping[str, Any], choices: Sequence[str]) -> tuple[int, ...]:
        """Indices of the right choices; none where the document names no choice."""
        task = self._task
        gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        found = []
        for answer in gold if isinstance(gold, list) else [gold]:
            index = choices.index(answer) if isinstance(answer, str) and answer in choices else answer
            if isinstance(index, int) and 0 <= index < len(choices):
                found.append(index)
        return tuple(found)

    def text(self, doc: Mapping[str, Any]) -> str:
        """The text that should follow the prompt, without the delimiter; empty where the document has none.

        Raises:
            TaskError: What is there is no text.
        """
        if self._field is not None:
            return self._named(doc, self._field)
        gold = self._target(doc)
        if self._task.config.doc_to_choice is not None and isinstance(gold, int):
            gold = self._task.doc_to_choice(doc)[gold]
        if isinstance(gold, list | tuple):  # several wordings, of which the first
            gold = gold[0] if gold else ""
        if _is_structure(gold):
            raise self._refused(f"its target is not text but {_shown(gold)}", doc)
        return "" if gold is None else str(gold)

    def _target(self, doc: Mapping[str, Any]) -> Any:
        if self._shots is None:
            return self._task.doc_to_target(doc)
        target, marks = self._shots
        shown = self._task.doc_to_target({**doc, **marks}, target)
        # Of some tasks the few-shot prompt ends with the answer and nothing is left for the target.
        return shown if str(shown).strip() else self._task.doc_to_target(doc)

    def _named(self, doc: Mapping[str, Any], field: str) -> str:
        if field not in doc:
            raise TaskError(f"task {self._name}: the documents have no field {field!r}; they have {_fields(doc)}")
        value = doc[field]
        if value is None or isinstance(value, str):
            return value or ""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TaskError(f"task {self._name}: field {field} is not text but {_shown(value)}")
        return str(value)

    def _check_choices(self) -> None:
        if self._field is not None:
            raise TaskError(
                f"task {self._name} ranks choices and names the correct one itself; a target field only applies to "
                f"tasks that generate text"
            )
        # truthfulqa_mc2: several choices are right, and only its own scoring code knows which.
        if _is_constant(self._task) and callable(self._task.config.process_results):
            raise TaskError(
                f"task {self._name}: cannot be trained on, because only its scoring code knows the gold answer"
            )

    def _check_text(self) -> None:
        task = self._task
        if task.OUTPUT_TYPE == "loglikelihood" or self._shots is not None:
            return
        if _is_constant(task) and task.config.doc_to_choice is None:
            raise self._refused(f"its target is {str(task.config.doc_to_target)!r} for every document, not an answer")
        if getattr(task, "UNSAFE_CODE", False):
            raise self._refused("it runs the generated code, and its target is the code that checks it")

    def _refused(self, reason: str, doc: Mapping[str, Any] | None = None) -> TaskError:
        fields = _fields(doc) if doc else ", ".join(sorted(map(printable, getattr(self._task, "features", []))))
        listed = f" (the documents have {fields})" if fields else ""
        return TaskError(
            f"task {self._name} cannot be trained on as is: {reason}; name the document field with the answer as the "
            f"target field{listed}, or write a YAML file with another doc_to_target"
        )


def _is_constant(task: Any) -> bool:
    """Whether the target does not depend on the document."""
    target = task.config.doc_to_target
    if isinstance(target, str):
        return target not in getattr(task, "features", []) and "{{" not in target and "{%" not in target
    return isinstance(target, int)


def _shot_target(task: Any) -> tuple[Any, dict[str, Any]] | None:
    """What the task shows as the right answer of a few-shot example, where that is another text than its target.

    Returns:
        The few-shot target, and what its template wants to know of a document that is a few-shot example; None where
        there is none, or it belongs to another prompt than the one that is asked.
    """
    shots, config = getattr(task, "fewshot_cfg", None), task.config
    target = getattr(shots, "doc_to_target", None)
    if target is None or getattr(shots, "doc_to_text", None) not in (None, config.doc_to_text):
        return None
    marks: dict[str, Any] = {}
    if isinstance(target, str) and target not in getattr(task, "features", []):
        try:
            asked = jinja2.meta.find_undeclared_variables(lm_eval.utils.env.parse(target))
        except jinja2.TemplateError:
            asked = set()
        marks = {name: True for name in sorted(asked) if name.replace("_", "") in ("fewshot", "isfewshot")}
    return (target, marks) if marks or target != config.doc_to_target else None


def _is_structure(gold: Any) -> bool:
    """Whether a target is a mapping or a list, or one that a template printed."""
    if isinstance(gold, str) and gold[:1] in ("{", "[") and gold[-1:] in ("}", "]"):
        try:
            gold = ast.literal_eval(gold)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return False
    return isinstance(gold, Mapping | list | tuple | set)


def _fields(doc: Mapping[str, Any]) -> str:
    return ", ".join(printable(field) for field in doc)


def _shown(value: Any) -> str:
    text = printable(value)
    return f"{text[:60]}…" if len(text) > 60 else text
