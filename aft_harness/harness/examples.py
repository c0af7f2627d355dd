"""From lm-eval tasks to training examples, formatted exactly as the task evaluates.

Knows lm-eval's task objects: prompts and gold answers. Which rows are drawn is `splits.py`'s work, what is learned from
an example the training floor's.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from aft_harness.boosters import documents
from aft_harness.boosters.provenance import TaskRecord
from aft_harness.engine.scoring import Request
from aft_harness.errors import AftError, TaskError
from aft_harness.harness import generation_requests, guards
from aft_harness.harness.gold import TargetText, gold_choices, refuse_constant_choice
from aft_harness.harness.judge import Judge
from aft_harness.harness.selection import PromptFormat, TaskSelection
from aft_harness.harness.splits import TrainingRows
from aft_harness.harness.tasks import Tasks, compiled_templates, configure, request_options, unchanged
from aft_harness.text import reason

logger = logging.getLogger(__name__)

ExampleKind = Literal["choice", "text", "pair", "judged"]


@dataclass(frozen=True)
class Judging:
    """That texts are judged which the model writes itself, and how.

    Attributes:
        reward: See `Judge`.
    """

    reward: str | None = None


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
        shown: The prompt of the right choice as text, for people to see.
    """

    task: str
    document: str
    question: str
    requests: tuple[Request, ...]
    gold: tuple[int, ...]
    choices: tuple[str, ...]
    weight: float = 1.0
    shown: str = field(default="", repr=False, compare=False)


@dataclass(frozen=True)
class TaskExamples:
    """The examples of one task, how they were formatted and what was left out.

    Attributes:
        task: Task name.
        version: The task's version.
        kind: `choice` where lm-eval ranks choices, `text` where there is a target text, `pair` where a chosen text is
            preferred to a rejected one, `judged` where the model writes texts itself.
        split: The rows that were drawn from, as a slice.
        num_fewshot: Few-shot examples in each prompt.
        train: Training examples.
        development: Development examples.
        overlapping: Documents dropped because the evaluated split holds the same question.
        goldless: Documents dropped because they have no usable gold answer.
        prompt_format: How the prompts were formatted.
        target_field: The documents' field that was learned; None where the task itself says what is right.
        held_out: Documents of the same rows that are neither of these: they are set aside for the reported result.
        judge: What texts are worth, of `judged` examples.
    """

    task: str
    version: str
    kind: ExampleKind
    split: str
    num_fewshot: int
    train: list[Example] = field(repr=False)
    development: list[Example] = field(repr=False)
    overlapping: int = 0
    goldless: int = 0
    prompt_format: PromptFormat = field(default_factory=PromptFormat)
    target_field: str | None = None
    held_out: int = 0
    judge: Judge | None = field(default=None, repr=False)

    def record(self) -> TaskRecord:
        """What a provenance says of these examples."""
        further: dict[str, Any] = {} if self.target_field is None else {"target_field": self.target_field}
        if self.held_out:
            further["n_held_out"] = self.held_out
        return TaskRecord(
            task=self.task,
            version=self.version,
            split=self.split,
            n_train=len(self.train),
            n_development=len(self.development),
            num_fewshot=self.num_fewshot,
            overlapping_dropped=self.overlapping,
            goldless_dropped=self.goldless,
            weight=self.train[0].weight,
            **further,
        )

    def __str__(self) -> str:
        """How many documents are used, and how many were dropped and why."""
        counts = {"training": len(self.train), "development": len(self.development), "held-out": self.held_out}
        listed = [f"{count} {role} documents" for role, count in counts.items() if count]
        used = " and ".join([", ".join(listed[:-1]), listed[-1]] if len(listed) > 1 else listed)
        parts = [f"{self.task}: {used or 'no documents'} from {self.split}"]
        if self.overlapping:
            parts.append(f"{self.overlapping} dropped (same question in the evaluated split)")
        if self.goldless:
            parts.append(f"{self.goldless} dropped (no usable answer)")
        return ", ".join(parts)


def draw(
    selections: Sequence[TaskSelection | str],
    lm: Any,
    prompt_format: PromptFormat | None = None,
    *,
    source: Tasks | None = None,
    split_seed: int = 0,
    judging: Judging | None = None,
) -> list[TaskExamples]:
    """Training and development examples of several tasks.

    Args:
        selections: Which documents of which tasks; a name alone takes the defaults.
        lm: A model type of ours, for tokens and the chat template.
        prompt_format: How the prompts are formatted.
        source: Where tasks are found.
        split_seed: Seed of the documents' order.
        judging: See `examples_of`.

    Raises:
        TaskError: See `examples_of`.
    """
    named = [TaskSelection(item) if isinstance(item, str) else item for item in selections]
    loaded = (source or Tasks()).select(named)
    return [examples_of(selection, task, lm, prompt_format, split_seed, judging) for selection, task in loaded]


def examples_of(
    selection: TaskSelection,
    task: Any,
    lm: Any,
    prompt_format: PromptFormat | None = None,
    split_seed: int = 0,
    judging: Judging | None = None,
) -> TaskExamples:
    """Training and development examples of one task, whose object is left as it was.

    Documents are ordered by a seeded hash of their question; development documents come first, training documents
    follow, so that one question is never on both sides.

    Args:
        selection: Which documents.
        task: The task object of lm-eval.
        lm: A model type of ours, for tokens and the chat template.
        prompt_format: How the prompts are formatted.
        split_seed: Seed of the order.
        judging: Of texts that the model will write itself, in place of an answer to learn.

    Raises:
        TaskError: No training split, nothing left, or a kind of task that has no gold answer to learn.
    """
    name, prompt_format = selection.name, prompt_format or PromptFormat()
    if task.OUTPUT_TYPE not in ("multiple_choice", "generate_until", "loglikelihood"):
        raise TaskError(f"task {name}: output type {task.OUTPUT_TYPE} has no answer to train on")
    judge = Judge(task, name, judging.reward) if judging else None
    if judge and selection.target_field is not None:
        raise TaskError(f"task {name}: there is no target to learn where texts are judged; leave out the target field")
    if selection.target_field is None and judge is None:
        refuse_constant_choice(task, name)
    rows = TrainingRows(task, selection)
    if rows.of_evaluation:
        logger.warning(
            "task %s: the rows %s are from the evaluated split; results are held-out on its other rows only",
            name,
            rows,
        )
    order, overlapping = rows.usable(split_seed)
    if not order:
        raise TaskError(
            f"task {name}: none of the {len(rows.docs)} documents in {rows} can be used ({overlapping} are also in "
            f"the evaluated split); choose held-out rows to train on, such as SPLIT[A:B]"
        )
    development, training = rows.carve(order, selection.dev_docs)
    if selection.development_only:
        training = []
    elif not training:
        raise TaskError(
            f"task {name}: {selection.dev_docs} development documents leave none of {len(order)} for training"
        )
    if selection.limit is not None:
        training = training[: selection.limit]
    with unchanged(task), compiled_templates():
        _evaluate_split(task, rows.split)
        num_fewshot = configure(task, prompt_format.num_fewshot)
        drawn = [*development, *training]
        target = None
        if judge is None and (task.OUTPUT_TYPE != "multiple_choice" or selection.target_field is not None):
            texts = [rows.docs[index] for index in drawn]
            target = TargetText(task, name, texts, rows.split_docs, selection.target_field)
        built = _build(task, rows, drawn, prompt_format, lm, selection.weight, judge or target)
    kept_development = [built[index] for index in development if index in built]
    kept_training = [built[index] for index in training if index in built]
    if not kept_training and not selection.development_only:
        raise TaskError(f"task {name}: no training document has a usable gold answer")
    return TaskExamples(
        task=name,
        version=str(task.VERSION),
        kind="judged" if judge else "text" if target else "choice",
        split=str(rows),
        num_fewshot=num_fewshot,
        train=kept_training,
        development=kept_development,
        overlapping=overlapping,
        goldless=len(development) + len(training) - len(kept_development) - len(kept_training),
        prompt_format=prompt_format,
        target_field=selection.target_field,
        judge=judge,
    )


def _evaluate_split(task: Any, split: str) -> None:
    """Makes the task evaluate `split`, with few-shot examples that never show a document's own answer."""
    config = task.config
    pool = task.fewshot_cfg.split
    if pool is None:
        pool = config.training_split or config.validation_split or config.test_split
    # lm-eval leaves a document out of its own few-shot examples only where these two names agree.
    task.set_config("test_split", split)
    if pool == split:
        task.fewshot_cfg.split = split


def _build(
    task: Any,
    rows: TrainingRows,
    indices: Iterable[int],
    prompt_format: PromptFormat,
    lm: Any,
    weight: float,
    target: TargetText | Judge | None,
) -> dict[int, Example]:
    """Examples by row index, through the very requests that lm-eval would evaluate."""
    chosen = sorted(indices)
    try:
        task.build_all_requests(samples=set(chosen), **request_options(prompt_format, lm))
    except AftError:
        raise
    except Exception as error:  # the task's own templates and samplers
        why = reason(error)
        raise TaskError(f"task {rows.name}: its prompts cannot be built ({type(error).__name__}: {why})") from error
    grouped: dict[int, list[Any]] = defaultdict(list)
    for instance in task.instances:
        grouped[instance.doc_id].append(instance)
    built: dict[int, Example] = {}
    for position, index in enumerate(chosen):
        instances = sorted(grouped[position], key=lambda instance: instance.idx)
        example = _example(task, rows, instances, prompt_format, lm, weight, target)
        if example is not None:
            built[index] = example
    return built


def _example(
    task: Any,
    rows: TrainingRows,
    instances: list[Any],
    prompt_format: PromptFormat,
    lm: Any,
    weight: float,
    target: TargetText | Judge | None,
) -> Example | None:
    doc = instances[0].doc  # of which the prompt was made: prompt and gold come from one and the same document
    question = rows.question(doc)
    common = (str(task.config.task), documents.text_hash(question), question)
    if isinstance(target, Judge):
        target.learn_of(common[1], instances[0])
        tokens = generation_requests.prompt_of(lm, instances[0])
        # No answer is learned: the token after the prompt only says where texts begin.
        request = Request(tokens, (int(lm.eot_token_id),))
        return Example(*common, (request,), (0,), ("",), weight, shown=instances[0].args[0])
    if target is None:
        choices = tuple(map(str, task.doc_to_choice(doc)))
        gold = gold_choices(task, doc, choices)
        if not gold or "" in choices:
            return None  # a choice without tokens has no loglikelihood to learn
        # A task that also scores by mutual information appends one unconditional request per choice.
        pairs = [instance.args[:2] for instance in instances[: len(choices)]]
        requests = tuple(lm.encode(*pair) for pair in pairs)
        guards.check_letters(common[0], requests)
        return Example(*common, requests, gold, choices, weight, shown=pairs[gold[0]][0])
    context, text = instances[0].args[0], target.of(doc)
    if task.OUTPUT_TYPE == "loglikelihood" and not target.named:
        continuation = text = str(instances[0].args[1])  # what is evaluated
    else:
        continuation = target.delimited(text, task.doc_to_prefix(doc), prompt_format.apply_chat_template)
    if not text.strip():
        return None
    return Example(*common, (lm.encode(context, continuation),), (0,), (text,), weight, shown=context)
