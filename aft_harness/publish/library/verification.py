"""Evaluating a published booster again: the model, the documents and the prompts of each claim.

Knows publications and the harness. When a claim holds is said in `verdicts.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.variant import BASELINE, Variant
from aft_harness.errors import BoosterError, ModelError, TaskError
from aft_harness.harness import evaluation
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.opening import Model, opened
from aft_harness.harness.recognition import located
from aft_harness.harness.selection import PromptFormat, task_names
from aft_harness.harness.suites import folder
from aft_harness.harness.tasks import Tasks
from aft_harness.progress import OnProgress, ignore
from aft_harness.publish.library.publication import Publication, Row
from aft_harness.publish.library.verdicts import Verdict, matched
from aft_harness.results import table
from aft_harness.results.runs import rows
from aft_harness.slices import Slice


class Measured(NamedTuple):
    """What claims have in common that are measured together."""

    task: str
    num_fewshot: int | None
    n: int
    documents: str
    version: str


def verify(
    source: str | Publication,
    model: Model | None = None,
    tokenizer: Any = None,
    *,
    tasks: str | Sequence[str] | None = None,
    limit: int | None = None,
    prompt_format: PromptFormat | None = None,
    include_path: Sequence[str | Path] = (),
    confirm_run_unsafe_code: bool = False,
    model_args: Mapping[str, Any] | None = None,
    on_progress: OnProgress = ignore,
    on_task: Callable[[str], None] = ignore,
) -> list[Verdict]:
    """Evaluates a published booster again, and says of each claim on its card whether it holds.

    Args:
        source: The name of a booster (`aft list`), or `hf://owner/repo[/file][@revision]`; or one that was opened.
        model: A hub id, a folder, or a loaded model; None means the model that the booster records.
        tokenizer: Tokenizer of a loaded model.
        tasks: Tasks whose claims are checked; None means all.
        limit: Number of documents per claim, for a quick look; None means all that the claim is about.
        prompt_format: How prompts are formatted, if not plainly; the number of few-shot examples is each claim's.
        include_path: Folders with additional task YAML files, beyond those that come with aft_harness.
        confirm_run_unsafe_code: Whether to allow tasks that execute model-generated code.
        model_args: See `opened`; the data type is by default that of each claim.
        on_progress: Called with the number of scored requests of a task and the total.
        on_task: Called with each task before it is evaluated.

    Returns:
        A verdict for each claim.

    Raises:
        AftError: There is no such booster, its files do not agree, or the model is not the one of the claims.

    Example:
        >>> all(verdict.outcome == "holds" for verdict in verify("smollm2-135m-arc-easy"))  # doctest: +SKIP
    """
    published = source if isinstance(source, Publication) else Publication.open(source)
    recorded = published.booster.provenance.base_model
    by_dtype: dict[str, list[Row]] = defaultdict(list)
    arguments = dict(model_args or {})
    for row in _claims(published, tasks):
        by_dtype[str(arguments.get("dtype") or row["dtype"] or "auto")].append(row)
    if model is None:
        if recorded is None or "/" not in recorded.name:
            what = recorded.label if recorded else "unknown"
            raise ModelError(f"{published.name}: its base model is no model of the hub ({what}); name the model")
        model = recorded.name
        arguments.setdefault("revision", recorded.revision or "main")
    known = Tasks([folder(), *include_path])
    found: list[Verdict] = []
    for dtype, members in by_dtype.items():
        with opened(model, tokenizer, **{**arguments, "dtype": dtype}) as lm:
            if recorded is not None and lm.base_model.differs_from(recorded):
                raise ModelError(f"the claims are about {recorded.label}, not about {lm.base_model.label}")
            evaluate = _Evaluation(lm, published.booster, known, prompt_format or PromptFormat(), limit)
            options = {"confirm_run_unsafe_code": confirm_run_unsafe_code, "on_progress": on_progress}
            for measured, together in _grouped(members).items():
                on_task(measured.task)
                found += evaluate(measured, together, **options)
    return found


def _claims(published: Publication, tasks: str | Sequence[str] | None) -> list[Row]:
    """The claims that are checked.

    Raises:
        BoosterError: The card claims nothing.
        TaskError: It claims nothing on a task that is named.
    """
    claims = published.claims
    if not claims:
        raise BoosterError(f"{published.name}: its card claims nothing, so there is nothing to verify")
    if tasks is None:
        return claims
    names = task_names(tasks)
    known = sorted({str(row["task"]) for row in claims})
    if missing := [name for name in names if name not in known]:
        raise TaskError(f"{published.name}: its card claims nothing on {missing[0]}, but on {', '.join(known)}")
    return [row for row in claims if row["task"] in names]


def _grouped(claims: Sequence[Row]) -> dict[Measured, list[Row]]:
    groups: dict[Measured, list[Row]] = defaultdict(list)
    for row in claims:
        number = None if row["num_fewshot"] is None else int(row["num_fewshot"])
        key = Measured(row["task"], number, int(row["n"]), row["documents_sha256"], row["task_version"])
        groups[key].append(row)
    return groups


class _Evaluation:
    """Measures claims about one booster on one model."""

    def __init__(
        self, lm: SteeredHFLM, booster: Booster, source: Tasks, prompt_format: PromptFormat, limit: int | None
    ) -> None:
        self.lm, self.booster, self.source, self.prompt_format, self.limit = lm, booster, source, prompt_format, limit

    def __call__(self, measured: Measured, claims: Sequence[Row], **options: Any) -> Iterator[Verdict]:
        """The verdicts on claims that are measured together."""
        asked = self.prompt_format
        plain = (asked.apply_chat_template, asked.system_instruction, asked.fewshot_as_multiturn)
        strengths = sorted({float(claim["strength"]) for claim in claims})
        variants = [Variant(f"{strength:g}", self.booster, strength) for strength in strengths]
        try:
            docs, remark = self._documents(measured)
            runs = evaluation.evaluate(
                self.lm,
                [BASELINE, *variants],
                [measured.task],
                PromptFormat(measured.num_fewshot, *plain),
                source=self.source,
                docs=docs,
                **options,
            )
        except TaskError as error:
            yield from (Verdict(claim, "not checked", str(error)) for claim in claims)
            return
        found = table.to_rows(table.to_frame(rows([run.run for run in runs])))
        yield from (matched(claim, found, remark) for claim in claims)

    def _documents(self, measured: Measured) -> tuple[Slice, str]:
        """The documents to evaluate, and what is to be said of them.

        Raises:
            TaskError: The task cannot be loaded, or is another one now.
        """
        leaves = self.source.leaves([measured.task])
        if measured.task not in leaves:
            raise TaskError(f"{measured.task} is a group of tasks")
        task = leaves[measured.task]
        if measured.version and measured.version != str(task.VERSION):
            raise TaskError(f"the card's results are of version {measured.version} of the task; this is {task.VERSION}")
        same = located(task, measured.n, measured.documents) if measured.documents else None
        start, remark = (same.start, "") if same is not None else (0, "the card's documents are not in the task")
        return Slice(start, start + min(measured.n, self.limit or measured.n)), remark
