"""What the right answer of a task's document is, as the text or the choices that a booster may learn.

Knows how lm-eval's tasks say it, and that many of them put something else there: what their own scoring code wants to
know. Such a target is refused, never learned. Knows nothing of prompts' tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from numbers import Number
from typing import Any

import lm_eval.utils
from jinja2 import Template, TemplateError, Undefined, meta, pass_context
from jinja2.runtime import Context
from lm_eval.api.utils import maybe_delimit

from aft_harness.errors import AftError, TaskError
from aft_harness.text import reason

_FEWSHOT_FLAG = re.compile(r"_*(is_)?few_?shot")
"""What templates call the field that only few-shot examples have."""

_LISTED = 12
"""Fields that a message names."""

_PRINTED = "aft_harness_printed"
"""Variable of a template whose list gets every value that the template prints."""


def gold_choices(task: Any, doc: Mapping[str, Any], choices: Sequence[str]) -> tuple[int, ...]:
    """Indices of a document's right choices; none where its gold answer is not among them."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    found = []
    for answer in gold if isinstance(gold, list) else [gold]:
        index = choices.index(answer) if isinstance(answer, str) and answer in choices else answer
        if isinstance(index, int) and 0 <= index < len(choices):
            found.append(index)
    return tuple(found)


def refuse_constant_choice(task: Any, name: str) -> None:
    """Refuses a task that ranks choices of which only its own scoring code knows the right ones.

    Raises:
        TaskError: It is one, such as truthfulqa_mc2.
    """
    constant = isinstance(task.config.doc_to_target, int) or str(task.config.doc_to_target).isdigit()
    if task.OUTPUT_TYPE == "multiple_choice" and constant and callable(task.config.process_results):
        raise TaskError(
            f"task {name}: its gold answer is known to its own scoring code only; it cannot be trained on as it is; "
            f"{_way_out(next(iter(task.eval_docs), {}))}"
        )


class TargetText:
    """The text that a model should write after a document's prompt.

    It is what the task shows as the answer of a few-shot example, where that can be made of the documents: some tasks
    have one target for the model to read and another for their scoring code. Otherwise it is the task's own target.
    """

    def __init__(
        self,
        task: Any,
        name: str,
        drawn: Sequence[Mapping[str, Any]],
        split: Sequence[Mapping[str, Any]],
        field: str | None = None,
    ) -> None:
        """Decides where the text comes from, and that it is one.

        Args:
            task: The task object of lm-eval.
            name: Its name.
            drawn: The documents to learn from and to choose by; not empty.
            split: Every document of the split that they are drawn from.
            field: A field of the documents that holds the text; None leaves it to the task.

        Raises:
            TaskError: The target is no text, the same for every document, or empty in all; or there is no such field.
        """
        self._task, self._name, self._field = task, name, field
        self._flags = _flags(task)
        self._fewshot = field is None and self._has_fewshot_form(drawn)
        if field is None:
            self._check(drawn, split)
        else:
            self._check_field(field, drawn)

    @property
    def named(self) -> bool:
        """Whether it is a field that was named, and not what the task says."""
        return self._field is not None

    def of(self, doc: Mapping[str, Any]) -> str:
        """The text; empty where the document has none.

        Raises:
            TaskError: It is no text.
        """
        if self._field is not None:
            return str(doc.get(self._field) or "")
        try:
            value = self._value(doc, self._fewshot)
        except AftError:
            raise
        except Exception as error:  # the task's own templates and functions
            raise self._refused(f"its target cannot be built ({_reason(error)})", doc) from error
        if value is None:
            return ""
        if not isinstance(value, str | Number):
            raise self._refused(f"its target is {_kind(value)}, not a text", doc)
        text = str(value)
        for shown in re.findall(r"\{\{\s*(\w+)\s*\}\}|(\{%)", text):
            if shown[0] in doc or shown[1]:
                raise self._refused(f"its target is a template that was not filled in ({text[:60]!r})", doc)
        return text

    def delimited(self, text: str, prefix: str | None, chat: bool) -> str:
        """A text with what stands between it and the prompt, as lm-eval joins a few-shot example.

        Args:
            text: From `of`.
            prefix: How the answer begins that the prompt ends with, where the task has such a `gen_prefix`.
            chat: Whether the prompt is chat turns.
        """
        if prefix:
            return maybe_delimit(prefix, text)[len(prefix) :]
        config = self._task.fewshot_cfg if self._fewshot else self._task.config
        return text if chat else f"{config.target_delimiter}{text}"

    def _value(self, doc: Mapping[str, Any], fewshot: bool) -> Any:
        """What the task says is the target: of a choice's index that choice, of a list its first, as lm-eval does."""
        task = self._task
        template, choices = task.config.doc_to_target, task.config.doc_to_choice
        if fewshot:
            template, choices = task.fewshot_cfg.doc_to_target, task.fewshot_cfg.doc_to_choice
            doc = {**doc, **dict.fromkeys(self._flags, True)}
        value = task.doc_to_target(doc, template) if fewshot else task.doc_to_target(doc)
        if isinstance(template, str) and template not in task.features and not isinstance(value, list):
            self._refuse_printed_objects(template, doc)
        if choices is not None and isinstance(value, int):
            return task.doc_to_choice(doc, choices)[value]
        if isinstance(value, list | tuple):
            return value[0] if value else ""
        return value

    def _has_fewshot_form(self, drawn: Sequence[Mapping[str, Any]]) -> bool:
        config, fewshot = self._task.config, self._task.fewshot_cfg
        differs = fewshot.doc_to_target and fewshot.doc_to_target != config.doc_to_target
        if self._task.OUTPUT_TYPE != "generate_until" or not (self._flags or differs):
            return False
        failed: Exception | None = None
        for doc in drawn:
            try:
                if str(self._value(doc, fewshot=True) or "").strip():
                    return True
            except Exception as error:  # few-shot examples may have fields that no document has
                failed = error
        if self._flags:
            # The task's other target is for its scoring code: it must not be learned instead.
            why = f" ({_reason(failed)})" if failed else ""
            raise self._refused(f"its documents lack what the answer of a few-shot example is made of{why}", drawn[0])
        return False

    def _check(self, drawn: Sequence[Mapping[str, Any]], split: Sequence[Mapping[str, Any]]) -> None:
        task, first = self._task, drawn[0]
        target = task.fewshot_cfg.doc_to_target if self._fewshot else task.config.doc_to_target
        template = isinstance(target, str) and (target in task.features or "{" in target)
        fixed = isinstance(target, int | str | list) and not template and task.config.doc_to_choice is None
        text = next((text for text in (self.of(doc).strip() for doc in drawn) if text), "")
        if not text:
            raise self._refused("its target is empty in every document", first)
        if fixed or (len(split) > 1 and all(self.of(doc).strip() == text for doc in split)):
            why = f"its target is the same for every document ({text[:60]!r})"
            raise self._refused(f"{why}: only its own scoring code knows what is right", first)
        if getattr(task, "UNSAFE_CODE", False) and task.OUTPUT_TYPE == "generate_until" and not self._fewshot:
            raise self._refused(
                "it runs the code that a model writes, and its target is what that code is tested by", first
            )

    def _check_field(self, field: str, drawn: Sequence[Mapping[str, Any]]) -> None:
        if self._task.multiple_input:
            raise TaskError(f"task {self._name}: its prompts hold the choices, so that no field can be the target text")
        for doc in drawn:
            if field not in doc:
                raise TaskError(f"task {self._name}: its documents have no field {field!r}; they have {_fields(doc)}")
            if doc[field] is not None and not isinstance(doc[field], str):
                raise TaskError(f"task {self._name}: the field {field!r} is {_kind(doc[field])}, not a text")
        if not any((doc[field] or "").strip() for doc in drawn):
            raise TaskError(f"task {self._name}: the field {field!r} is empty in every document")

    def _refuse_printed_objects(self, template: str, doc: Mapping[str, Any]) -> None:
        """Refuses a template that prints what is no text: Python's notation of it would be learned."""
        printed: list[Any] = []
        _recording(template).render(**doc, **{_PRINTED: printed})
        for value in printed:
            if not isinstance(value, str | Number | None):
                raise self._refused(f"its target prints {_kind(value)} as if it were a text", doc)

    def _refused(self, why: str, doc: Mapping[str, Any]) -> TaskError:
        return TaskError(f"task {self._name}: {why}; {_way_out(doc)}")


def _way_out(doc: Mapping[str, Any]) -> str:
    return (
        f"name the field that holds the answer with --target-field FIELD (target_field in Python and plans; its "
        f"documents have {_fields(doc)}), or write a task YAML of your own"
    )


def _fields(doc: Mapping[str, Any]) -> str:
    names = list(map(str, doc))
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"an object with the fields {_fields(value)}"
    if isinstance(value, list | tuple):
        return "a list"
    return f"a value of type {type(value).__name__}"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {reason(error)}"


def _flags(task: Any) -> frozenset[str]:
    """What a task's targets ask for to tell few-shot examples from other documents."""
    named: set[str] = set()
    for template in (task.fewshot_cfg.doc_to_target, task.config.doc_to_target):
        if isinstance(template, str) and template not in task.features:
            try:
                named |= meta.find_undeclared_variables(lm_eval.utils.env.parse(template))
            except TemplateError:  # building a target says so
                continue
    return frozenset(name for name in named if _FEWSHOT_FLAG.fullmatch(name) and name not in task.features)


@pass_context
def _recorded(context: Context, value: Any) -> Any:
    if not isinstance(value, Undefined):  # of which printing is an error
        context[_PRINTED].append(value)
    return value


_RECORDING = lm_eval.utils.env.overlay(finalize=_recorded)


@lru_cache(maxsize=64)
def _recording(template: str) -> Template:
    return _RECORDING.from_string(template)
