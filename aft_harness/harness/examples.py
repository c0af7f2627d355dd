"""From lm-eval tasks to training examples, formatted exactly as the task evaluates.

Knows lm-eval's task objects: splits, prompts, gold answers. Keeps the three roles of documents apart: training,
development and test. Knows nothing of boosters.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from lm_eval.tasks import TaskManager
from torch import Tensor

from aft_harness.boosters import documents
from aft_harness.engine.scoring import Request
from aft_harness.errors import AftError, TaskError
from aft_harness.results.pairing import bounds
from aft_harness.training.recipe import ChoiceNorm

FEWSHOT_SEED = 1234
"""lm-eval's own default, so that few-shot examples are drawn as in evaluation."""

_SLICE = re.compile(r"(?P<split>[\w.-]+)(?:\[(?P<start>\d*):(?P<stop>\d*)\])?")


@dataclass(frozen=True)
class Example:
    """One document, ready to train on.

    Attributes:
        task: Task name.
        document: Hash of the question, see `documents.py`.
        question: The question's own text, without few-shot examples, instructions or choices.
        requests: One per choice; a single one where the document has a target text and no choices.
        gold: Indices of the right choices.
        choices: The choices' texts, as lm-eval's length-normalised accuracy measures them.
        weight: Weight of this example in the loss.
    """

    task: str
    document: str
    question: str
    requests: tuple[Request, ...]
    gold: tuple[int, ...]
    choices: tuple[str, ...]
    weight: float = 1.0


def choice_lengths(example: Example, norm: ChoiceNorm) -> list[int]:
    """What the loglikelihood of each choice is divided by before choices are ranked; at least 1.

    Args:
        example: With choices.
        norm: `characters` is what lm-eval's `acc_norm` ranks by, `bytes` its `acc_bytes`.
    """
    lengths = {
        "none": [1 for _ in example.choices],
        "characters": [len(choice) for choice in example.choices],
        "bytes": [len(choice.encode()) for choice in example.choices],
        "tokens": [len(request.continuation) for request in example.requests],
    }
    return [max(1, length) for length in lengths[norm]]


def ranked(example: Example, loglikelihoods: Tensor, norm: ChoiceNorm) -> Tensor:
    """What choices are ranked by, [choices], differentiable: their loglikelihoods over their lengths."""
    return loglikelihoods / torch.tensor(choice_lengths(example, norm)).to(loglikelihoods)


def graded(example: Example, loglikelihoods: Tensor, norm: ChoiceNorm) -> tuple[Tensor, bool]:
    """Cross-entropy of the softmax over the choices, differentiable, and whether the likeliest choice is a right one.

    Args:
        example: With choices.
        loglikelihoods: One a choice, [choices].
        norm: See `choice_lengths`.
    """
    scores = ranked(example, loglikelihoods, norm)
    loss = scores.logsumexp(0) - scores[list(example.gold)].logsumexp(0)
    return loss, int(scores.argmax()) in example.gold


@dataclass(frozen=True)
class Prompting:
    """How prompts are formatted; the same words as lm-eval's options."""

    num_fewshot: int | None = None
    apply_chat_template: bool = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool | None = None
    include_path: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskSelection:
    """Which documents of one task to train on.

    Attributes:
        name: Task name.
        limit: Largest number of training documents; None takes all.
        weight: Weight of the task in the loss of a mixture.
        train_docs: `split` or `split[a:b]`; None takes the task's training split.
        dev_docs: Number of development documents to carve from the same rows.
        development_only: Whether training documents are not wanted at all.
    """

    name: str
    limit: int | None = None
    weight: float = 1.0
    train_docs: str | None = None
    dev_docs: int = 0
    development_only: bool = False


@dataclass(frozen=True)
class TaskExamples:
    """The examples of one task and what was left out.

    Attributes:
        task: Task name.
        version: The task's version.
        kind: `choice` where lm-eval ranks choices, `text` where there is a target text.
        split: The rows that were drawn from, as a slice.
        num_fewshot: Few-shot examples in each prompt.
        train: Training examples.
        development: Development examples.
        overlapping: Documents dropped because the evaluated split holds the same question.
        goldless: Documents dropped because they have no usable gold answer.
    """

    task: str
    version: str
    kind: Literal["choice", "text"]
    split: str
    num_fewshot: int
    train: list[Example] = field(repr=False)
    development: list[Example] = field(repr=False)
    overlapping: int = 0
    goldless: int = 0


def load_tasks(
    selections: Sequence[TaskSelection], include_path: Sequence[str] = ()
) -> list[tuple[TaskSelection, Any]]:
    """Loads lm-eval task objects, groups and tags unfolded into their tasks.

    Args:
        selections: The tasks; the members of a group each get the group's limit, weight and slice.
        include_path: Folders with further task YAMLs.

    Raises:
        TaskError: An unknown task, a folder that does not exist, data that cannot be loaded.
    """
    manager = task_manager([selection.name for selection in selections], include_path)
    loaded: list[tuple[TaskSelection, Any]] = []
    for selection in selections:
        try:
            tasks = manager.load(selection.name)["tasks"]
        except Exception as error:  # whatever a task's own code or the datasets library raises
            reason = " ".join(str(error).split())[:300]
            raise TaskError(f"task {selection.name} cannot be loaded ({type(error).__name__}: {reason})") from error
        members = [TaskSelection(**{**vars(selection), "name": name}) for name in tasks]
        loaded += zip(members, tasks.values(), strict=True)
    return loaded


def evaluated(
    task: Any, docs: str | None = None, limit: int | None = None
) -> Iterator[tuple[Mapping[str, Any], set[str]]]:
    """The documents that a task evaluates, each with every hash that it could have been recorded under.

    Args:
        task: The task object of lm-eval.
        docs: Those of a slice `a:b`.
        limit: So many of them.
    """
    start, stop = bounds(docs) if docs else (0, None)
    for doc in list(task.eval_docs)[start:stop][:limit]:
        yield doc, documents.possible_hashes(doc, str(task.doc_to_text(doc)))


def task_manager(names: Sequence[str], include_path: Sequence[str] = ()) -> Any:
    """lm-eval's index of tasks, checked to hold those that are named.

    Raises:
        TaskError: An unknown task, or a folder that does not exist.
    """
    for folder in include_path:
        if not Path(folder).is_dir():
            raise TaskError(f"--include-path {folder}: no such folder")
    manager = _indexed(tuple(include_path))
    for name in names:
        if name not in manager.all_tasks and not name.endswith((".yaml", ".yml")):
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "`lm_eval ls tasks` lists them"
            raise TaskError(f"unknown task {name!r}; {hint}")
    return manager


@lru_cache(maxsize=4)
def _indexed(include_path: tuple[str, ...]) -> Any:
    # Indexing lm-eval's thousands of YAML files takes seconds.
    return TaskManager(include_path=list(include_path) or None)


def task_examples(
    selection: TaskSelection, task: Any, prompting: Prompting, lm: Any, split_seed: int = 0
) -> TaskExamples:
    """Training and development examples of one task.

    Documents are ordered by a seeded hash of their question; development documents come first, training documents
    follow, so that one question is never on both sides. The task object is changed and must not be reused.

    Args:
        selection: Which documents.
        task: The task object of lm-eval.
        prompting: How the prompts are formatted.
        lm: A `SteeredHFLM`, for tokens and the chat template.
        split_seed: Seed of the order.

    Raises:
        TaskError: No training split, nothing left, or a kind of task that has no gold answer to learn.
    """
    name = selection.name
    if task.OUTPUT_TYPE not in ("multiple_choice", "generate_until", "loglikelihood"):
        raise TaskError(f"task {name}: output type {task.OUTPUT_TYPE} has no answer to train on")
    _refuse_constant_gold(task, name)
    rows = _Rows.of(task, selection)
    order, overlapping = rows.usable(split_seed)
    if not order:
        raise TaskError(
            f"task {name}: none of the {rows.count} documents of {rows} is left ({overlapping} also stand in the "
            f"evaluated split); name held-out rows with --train-docs SPLIT[a:b]"
        )
    development, training = rows.carve(order, selection.dev_docs)
    if selection.development_only:
        training = []
    elif not training:
        raise TaskError(f"task {name}: --dev-docs {selection.dev_docs} leaves no training documents of {len(order)}")
    if selection.limit is not None:
        training = training[: selection.limit]
    num_fewshot = _prepare(task, rows.split, prompting.num_fewshot)
    built = _build(task, rows, [*development, *training], prompting, lm, selection.weight)
    kept_development = [built[index] for index in development if index in built]
    kept_training = [built[index] for index in training if index in built]
    if not kept_training and not selection.development_only:
        raise TaskError(f"task {name}: no training document has a usable gold answer")
    return TaskExamples(
        task=name,
        version=str(task.VERSION),
        kind="choice" if task.OUTPUT_TYPE == "multiple_choice" else "text",
        split=str(rows),
        num_fewshot=num_fewshot,
        train=kept_training,
        development=kept_development,
        overlapping=overlapping,
        goldless=len(development) + len(training) - len(kept_development) - len(kept_training),
    )


class _Rows:
    """The rows of one split that training may draw from."""

    def __init__(self, task: Any, name: str, split: str, start: int, stop: int | None, explicit: bool) -> None:
        self._task, self._name, self.split, self._explicit = task, name, split, explicit
        docs = _split_docs(task, split, name)
        self.start, self.stop = start, len(docs) if stop is None else min(stop, len(docs))
        if self.start >= self.stop:
            raise TaskError(
                f"task {name}: --train-docs {split}[{start}:{stop}] is empty; the split has {len(docs)} rows"
            )
        self.docs: dict[int, dict[str, Any]] = {
            index: doc for index, doc in enumerate(docs) if self.start <= index < self.stop
        }
        evaluated = list(task.eval_docs)
        eval_split = task.config.test_split or task.config.validation_split
        if explicit and split == eval_split:
            # The caller set these rows aside; what is evaluated is the rest of the split.
            evaluated = [doc for index, doc in enumerate(evaluated) if not self.start <= index < self.stop]
        field = documents.question_field(list(task.eval_docs))
        if field and not all(isinstance(doc.get(field), str) for doc in self.docs.values()):
            field = None
        self.questions = {index: self._question(doc, field) for index, doc in self.docs.items()}
        self.hashes = {index: documents.text_hash(text) for index, text in self.questions.items()}
        self._evaluated = {documents.text_hash(self._question(doc, field)) for doc in evaluated}

    @classmethod
    def of(cls, task: Any, selection: TaskSelection) -> _Rows:
        """The rows that a selection names, or the task's training split."""
        name = selection.name
        if selection.train_docs is None:
            if not task.has_training_docs():
                splits = ", ".join(map(str, getattr(task, "dataset", {}) or []))
                raise TaskError(
                    f"task {name} has no training split; set rows aside with --train-docs SPLIT[a:b] "
                    f"(splits: {splits}) and evaluate on the others"
                )
            return cls(task, name, str(task.config.training_split), 0, None, explicit=False)
        match = _SLICE.fullmatch(selection.train_docs)
        if match is None:
            raise TaskError(f"--train-docs {selection.train_docs!r} is not of the form SPLIT or SPLIT[a:b]")
        start, stop = match["start"], match["stop"]
        return cls(task, name, match["split"], int(start or 0), int(stop) if stop else None, explicit=True)

    @property
    def count(self) -> int:
        return len(self.docs)

    def __str__(self) -> str:
        return f"{self.split}[{self.start}:{self.stop}]"

    def usable(self, seed: int) -> tuple[list[int], int]:
        """Row indices in their seeded order, without what the evaluation would meet again, and how many those are."""
        free = [index for index, digest in self.hashes.items() if digest not in self._evaluated]

        def rank(index: int) -> tuple[str, int]:
            return hashlib.sha256(f"{seed}/{self.hashes[index]}".encode()).hexdigest(), index

        return sorted(free, key=rank), len(self.hashes) - len(free)

    def carve(self, order: list[int], dev_docs: int) -> tuple[list[int], list[int]]:
        """Splits an order into development and training rows; rows with one question stay together."""
        cut = min(dev_docs, len(order))
        while 0 < cut < len(order) and self.hashes[order[cut - 1]] == self.hashes[order[cut]]:
            cut += 1
        return order[:cut], order[cut:]

    def _question(self, doc: dict[str, Any], field: str | None) -> str:
        """The field that holds the question, else the document's own prompt without few-shot examples."""
        if field:
            return str(doc[field])
        text = self._task.doc_to_text(doc)
        return text if isinstance(text, str) else "\n".join(map(str, self._task.doc_to_choice(doc)))


def _split_docs(task: Any, split: str, name: str) -> Any:
    if split not in task.dataset:
        raise TaskError(f"task {name} has no split {split!r}; it has {', '.join(map(str, task.dataset))}")
    rows = task.dataset[split]
    return task.config.process_docs(rows) if task.config.process_docs is not None else rows


def _refuse_constant_gold(task: Any, name: str) -> None:
    # truthfulqa_mc2: several choices are right, and only its own scoring code knows which.
    constant = isinstance(task.config.doc_to_target, int) or str(task.config.doc_to_target).isdigit()
    if task.OUTPUT_TYPE == "multiple_choice" and constant and callable(task.config.process_results):
        raise TaskError(f"task {name}: its gold answer is known to its own scoring code only; it cannot be trained on")


def _prepare(task: Any, split: str, num_fewshot: int | None) -> int:
    """Makes the task evaluate `split`, with few-shot examples that never show a document's own answer."""
    config = task.config
    pool = task.fewshot_cfg.split
    if pool is None:
        pool = config.training_split or config.validation_split or config.test_split
    # lm-eval leaves a document out of its own few-shot examples only where these two names agree.
    task.set_config("test_split", split)
    if pool == split:
        task.fewshot_cfg.split = split
    if num_fewshot is not None and config.num_fewshot != 0:
        task.set_config("num_fewshot", num_fewshot)
    elif config.num_fewshot is None:
        task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(FEWSHOT_SEED)
    return int(config.num_fewshot)


def _build(
    task: Any, rows: _Rows, indices: Iterable[int], prompting: Prompting, lm: Any, weight: float
) -> dict[int, Example]:
    """Examples by row index, through the very requests that lm-eval would evaluate."""
    chosen = sorted(indices)
    multiturn = prompting.fewshot_as_multiturn
    try:
        task.build_all_requests(
            samples=set(chosen),
            system_instruction=prompting.system_instruction,
            apply_chat_template=prompting.apply_chat_template,
            fewshot_as_multiturn=prompting.apply_chat_template if multiturn is None else multiturn,
            chat_template=lm.apply_chat_template if prompting.apply_chat_template else None,
            tokenizer_name=lm.tokenizer_name if prompting.apply_chat_template else "",
        )
    except AftError:
        raise
    except Exception as error:  # the task's own templates and samplers
        reason = " ".join(str(error).split())[:300]
        raise TaskError(f"task {rows._name}: its prompts cannot be built ({type(error).__name__}: {reason})") from error
    grouped: dict[int, list[Any]] = defaultdict(list)
    for instance in task.instances:
        grouped[instance.doc_id].append(instance)
    built: dict[int, Example] = {}
    for position, index in enumerate(chosen):
        instances = sorted(grouped[position], key=lambda instance: instance.idx)
        example = _example(task, rows, index, instances, prompting, lm, weight)
        if example is not None:
            built[index] = example
    return built


def _example(
    task: Any,
    rows: _Rows,
    index: int,
    instances: list[Any],
    prompting: Prompting,
    lm: Any,
    weight: float,
) -> Example | None:
    doc, said = rows.docs[index], (str(task.config.task), rows.hashes[index], rows.questions[index])
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = tuple(map(str, task.doc_to_choice(doc)))
        gold = _gold_choices(task, doc, choices)
        if not gold:
            return None
        # A task that also scores by mutual information appends one unconditional request per choice.
        pairs = [instance.args[:2] for instance in instances[: len(choices)]]
        requests = tuple(lm.encode(*pair) for pair in pairs)
        lm.check_letters(said[0], requests)
        return Example(*said, requests, gold, choices, weight)
    context = instances[0].args[0]
    if task.OUTPUT_TYPE == "loglikelihood":
        target, text = instances[0].args[1], str(instances[0].args[1])
    else:
        text = _gold_text(task, doc)
        target = _delimiter(task, prompting) + text
    return Example(*said, (lm.encode(context, target),), (0,), (text,), weight) if text.strip() else None


def _gold_choices(task: Any, doc: dict[str, Any], choices: Sequence[str]) -> tuple[int, ...]:
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    found = []
    for one in gold if isinstance(gold, list) else [gold]:
        index = choices.index(one) if isinstance(one, str) and one in choices else one
        if isinstance(index, int) and 0 <= index < len(choices):
            found.append(index)
    return tuple(found)


def _gold_text(task: Any, doc: dict[str, Any]) -> str:
    gold = task.doc_to_target(doc)
    if task.config.doc_to_choice is not None and isinstance(gold, int):
        gold = task.doc_to_choice(doc)[gold]
    if isinstance(gold, list):
        gold = gold[0] if gold else ""
    return str(gold)


def _delimiter(task: Any, prompting: Prompting) -> str:
    # The rule by which lm-eval joins a multiple-choice answer to its prompt.
    prefix = task.config.gen_prefix
    if prompting.apply_chat_template and not (prefix and not prefix[-1:].isspace()):
        return ""
    return str(task.config.target_delimiter)
