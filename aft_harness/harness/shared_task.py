"""A task that several variants are asked, one after the other: its documents are read once and its prompts built once.

Knows lm-eval's task objects. Knows neither models nor variants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lm_eval.api.task import ConfigurableTask

_Document = Mapping[str, Any]

_RENDERED = ("doc_to_text", "doc_to_target", "doc_to_choice")
"""What lm-eval makes of a document by a template, again for every variant."""


class _Documents:
    """Documents that are decoded when they are first reached, and then kept."""

    def __init__(self, documents: Any) -> None:
        self._count = len(documents)
        self._known: list[_Document] = []
        self._rest = iter(documents)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[_Document]:
        for place in range(self._count):
            if place == len(self._known):
                self._known.append(next(self._rest))
            yield self._known[place]


@contextmanager
def built_once(task: Any) -> Iterator[None]:
    """In this block a task reads its documents once and builds its prompts once, whoever asks how often.

    Where only templates read the documents, each document is decoded once and each template rendered once for it. A
    function could change what it is given, and so gets newly decoded documents each time, as it does in lm-eval.
    """
    replaced: dict[str, Callable[..., Any]] = {"build_all_requests": _once(task)}
    documents = task.eval_docs
    if _is_all_templates(task):
        documents = _Documents(documents)
        replaced |= {name: _remembered(getattr(task, name)) for name in _RENDERED}
    replaced["test_docs" if task.has_test_docs() else "validation_docs"] = lambda: documents
    try:
        vars(task).update(replaced)
        yield
    finally:
        for name in replaced:
            vars(task).pop(name, None)
        task._instances = None


def _once(task: Any) -> Callable[..., None]:
    """A `build_all_requests` that builds the first time, and then hands out the same requests without their results."""
    build: Callable[..., None] = task.build_all_requests
    built: dict[str, Any] = {}

    def build_once(**options: Any) -> None:
        if not built:
            build(**options)
            built["instances"] = task.instances
        task._instances = built["instances"]
        for instance in task.instances:
            instance.resps, instance.filtered_resps = [], {}  # new ones: the samples of the variant before hold theirs

    return build_once


def _is_all_templates(task: Any) -> bool:
    config = task.config
    read_by = (*(getattr(config, name) for name in _RENDERED), config.process_results)
    return isinstance(task, ConfigurableTask) and not any(callable(each) for each in read_by)


def _remembered(render: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a task that renders each document once.

    Documents are told apart by identity and kept alive by the entries, so that no other can take their place.
    """
    known: dict[int, tuple[_Document, Any]] = {}

    def remembered(doc: _Document, *template: Any) -> Any:
        if template:  # that of a few-shot example, say
            return render(doc, *template)
        if id(doc) not in known:
            known[id(doc)] = doc, render(doc)
        return known[id(doc)][1]

    return remembered
