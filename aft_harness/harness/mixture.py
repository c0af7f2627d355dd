"""What a booster learns from: tasks and pairs of texts as they were chosen, and their examples for a model.

Knows selections, tasks and pairs. Knows nothing of how anything is learned from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aft_harness.errors import TaskError
from aft_harness.harness.examples import Judging, TaskExamples, examples_of
from aft_harness.harness.judge import Judge
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.pair_examples import draw_pairs
from aft_harness.harness.pair_sources import Pairs, read_all, refuse_same_names
from aft_harness.harness.selection import PromptFormat, TaskSelection, task_names
from aft_harness.harness.tasks import Tasks

TasksLike = str | Sequence[str | TaskSelection]
"""Tasks to train on: one name, several names separated by commas, or a list of names and selections."""


class Drawn(NamedTuple):
    """The examples of a training.

    Attributes:
        examples: Of each task and each source of pairs.
        held_out: Tasks that ask of pairs which nothing is learned from, by name.
    """

    examples: list[TaskExamples]
    held_out: dict[str, Any]


class Mixture:
    """Tasks and pairs of texts, chosen and read, before there is a model."""

    def __init__(
        self,
        tasks: TasksLike,
        pairs: Pairs,
        *,
        limit: int | None,
        dev_docs: int,
        prompt_format: PromptFormat | None = None,
        include_path: Sequence[str | Path] = (),
        split_seed: int = 0,
        judging: Judging | None = None,
    ) -> None:
        """Reads pairs and loads tasks.

        Args:
            tasks: See `TasksLike`.
            pairs: See `Pairs`.
            limit: Maximum number of training documents of what is given by name only.
            dev_docs: Number of its development documents.
            prompt_format: How prompts are formatted.
            include_path: Folders with additional task YAML files.
            split_seed: Of the choice of documents.
            judging: How texts are judged that the model writes itself, where it learns from these.

        Raises:
            AftError: There are no such tasks or pairs, or they cannot be used.
        """
        self._prompt_format, self._split_seed, self._judging = prompt_format, split_seed, judging
        self._pairs = read_all(pairs, limit, dev_docs)
        source = Tasks(include_path)
        self._tasks = source.select(_selections(tasks, limit, dev_docs)) if tasks or not self._pairs else []
        names = [selection.name for selection, _ in self._tasks]
        refuse_same_names([*names, *(given.name for _, given in self._pairs)])
        if judging is not None:
            for asked, task in self._tasks:
                Judge(task, asked.name, judging.reward)

    def draw(self, lm: SteeredHFLM) -> Drawn:
        """The examples for a model."""
        found = Drawn([], {})
        for asked, task in self._tasks:
            found.examples.append(examples_of(asked, task, lm, self._prompt_format, self._split_seed, self._judging))
        for selection, given in self._pairs:
            drawn = draw_pairs(given, selection, lm, self._prompt_format, self._split_seed)
            found.examples.append(drawn.examples)
            if drawn.held_out is not None:
                found.held_out[given.name] = drawn.held_out
        return found


def _selections(tasks: TasksLike, limit: int | None, dev_docs: int) -> list[TaskSelection]:
    listed: Sequence[str | TaskSelection] = task_names(tasks) if isinstance(tasks, str) else tasks
    if not listed:
        raise TaskError("no tasks given")
    return [TaskSelection(item, limit=limit, dev_docs=dev_docs) if isinstance(item, str) else item for item in listed]
