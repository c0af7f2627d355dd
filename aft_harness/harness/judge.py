"""What a text is worth: the metric of an lm-eval generation task, computed by the task's own filters, or a function.

Knows lm-eval's task objects and requests. Knows nothing of models and of what is learned from a reward.
"""

from __future__ import annotations

import importlib
import math
import numbers
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lm_eval.api.instance import Instance

from aft_harness.errors import AftError, TaskError, TrainingError
from aft_harness.text import reason


class Judge:
    """Gives rewards to texts that answer the documents of one task.

    Attributes:
        name: Of the task.
        reward: How it judges: `METRIC,FILTER`, or `module:function`.
    """

    def __init__(self, task: Any, name: str, reward: str | None = None) -> None:
        """Finds the metric or the function.

        Args:
            task: The task object of lm-eval.
            name: Its name.
            reward: `METRIC` or `METRIC,FILTER` of the task, or `module:function`, which is called with a document and a
                text and returns a number; None takes the first metric and the first filter.

        Raises:
            TaskError: Not a generation task, or one without such a metric or filter.
            TrainingError: A function that cannot be imported.
        """
        if task.OUTPUT_TYPE != "generate_until":
            raise TaskError(
                f"task {name}: output type {task.OUTPUT_TYPE}; rewards are given to texts, which only generation tasks "
                "(generate_until) ask for"
            )
        if getattr(task, "UNSAFE_CODE", False) and os.environ.get("HF_ALLOW_CODE_EVAL") != "1":
            raise TaskError(f"task {name} runs the code that a model writes; set HF_ALLOW_CODE_EVAL=1 to allow that")
        self.name, self._task = name, task
        self._asked: dict[str, Instance] = {}
        self._function: Callable[[Mapping[str, Any], str], Any] | None = None
        self._metric, self._filter, self._sign = "", None, 1.0
        if reward is not None and ":" in reward:
            self._function, self.reward = imported(reward), reward
            return
        self._choose(reward)

    def _choose(self, reward: str | None) -> None:
        metrics = [str(metric) for metric in self._task.aggregation()]
        filters = {each.name: each for each in getattr(self._task, "_filters", [])}
        metric, _, chosen = (reward or "").partition(",")
        self._metric = metric or next(iter(metrics), "")
        if self._metric not in metrics:
            raise TaskError(f"task {self.name} has no metric {self._metric!r}; it has {', '.join(metrics) or 'none'}")
        if chosen and chosen not in filters:
            raise TaskError(f"task {self.name} has no filter {chosen!r}; it has {', '.join(filters) or 'none'}")
        self._filter = filters[chosen] if chosen else next(iter(filters.values()), None)
        self._sign = 1.0 if self._task.higher_is_better().get(self._metric, True) else -1.0
        self.reward = f"{self._metric},{self._filter.name if self._filter else 'none'}"

    def learn_of(self, document: str, instance: Instance) -> None:
        """Remembers the request of a document, by the hash of its question."""
        self._asked[document] = instance

    def settings(self, document: str) -> dict[str, Any]:
        """How the task has texts generated for a document."""
        return dict(self._asked[document].args[1])

    def rewards(self, document: str, texts: Sequence[str]) -> list[float]:
        """What texts are worth as answers to a document; of a metric where less is better, its negative.

        Args:
            document: Hash of its question.
            texts: As lm-eval hands them to the task's filters.

        Raises:
            TaskError: The metric gives no number, or fails.
            TrainingError: The function returns no number, or fails.
        """
        instance = self._asked[document]
        if self._function is not None:
            return [self._called(dict(instance.doc), text) for text in texts]
        return [self._sign * self._measured(instance, text) for text in texts]

    def _called(self, doc: dict[str, Any], text: str) -> float:
        assert self._function is not None
        try:
            found = self._function(doc, text)
        except Exception as error:  # somebody's own code
            raise TrainingError(f"reward {self.reward} failed ({type(error).__name__}: {reason(error)})") from error
        if not _is_number(found):
            raise TrainingError(f"reward {self.reward} returned {found!r:.60}, which is not a finite number")
        return float(found)

    def _measured(self, instance: Instance, text: str) -> float:
        judged = replace(instance, resps=[text], filtered_resps={})
        try:
            if self._filter is not None:
                self._filter.apply([judged])
                answer = judged.filtered_resps[self._filter.name]
            else:
                answer = text
            found = self._task.process_results(instance.doc, [answer])
        except AftError:
            raise
        except Exception as error:  # the task's own code
            why = f"{type(error).__name__}: {reason(error)}"
            raise TaskError(f"task {self.name}: its metric {self._metric} failed ({why})") from error
        value = found.get(self._metric)
        if not _is_number(value):
            raise TaskError(
                f"task {self.name}: its metric {self._metric} gives no number for a document; choose another, or a "
                f"function module:name (its metrics: {', '.join(map(str, found))})"
            )
        return float(value)


def imported(name: str) -> Callable[..., Any]:
    """The function `module:function`; modules of the current folder are found, too.

    Raises:
        TrainingError: It cannot be imported.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise TrainingError(f"reward {name}: expected module:function")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # whatever a module does when it is imported
        raise TrainingError(f"reward {name} cannot be imported ({type(error).__name__}: {reason(error)})") from error
    finally:
        sys.path.remove(os.getcwd())
    if not callable(found):
        raise TrainingError(f"reward {name}: the module {module} has no function {function}")
    return found


def _is_number(value: Any) -> bool:
    real = isinstance(value, numbers.Real) or (hasattr(value, "item") and getattr(value, "ndim", None) == 0)
    return real and math.isfinite(float(value))
