"""What stands between a run and a wrong number: guards of response caches, of held-out documents, of letters.

Knows requests of lm-eval, provenance and identities. Knows nothing of how a model computes.
"""

from __future__ import annotations

import logging
import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.instance import Instance

from aft_harness.boosters import documents
from aft_harness.boosters.model_identity import ModelIdentity
from aft_harness.boosters.variant import Variant
from aft_harness.engine.scoring import Request
from aft_harness.errors import CacheError, ModelError, TaskError
from aft_harness.harness.identity import differences

logger = logging.getLogger(__name__)

CACHE_KEY = "aft_harness:written_by"
LETTER_TASK = re.compile(r"aft_\w+_letter")
"""Names of the tasks whose answers are letters."""


def guard_cache(database: Any, identity: str, model_type: str) -> None:
    """Accepts a `--use_cache` database only if the very model and booster of `identity` wrote it.

    lm-eval's keys hold the request and not the model, so that a baseline's answers would pass for a booster's.

    Args:
        database: lm-eval's `dbdict`; None without a cache.
        identity: From `GuardedLM.cache_identity`.
        model_type: What messages call who asks.

    Raises:
        CacheError: It was written with other settings, which are named.
    """
    if database is None:
        return
    written_by = database.get(CACHE_KEY)
    if written_by is None and len(database):
        raise CacheError(
            f"{database.filename}: this response cache was not written by {model_type}, so its answers may come "
            "from another model; use a new path"
        )
    if written_by not in (None, identity):
        differing = differences(written_by, identity)
        how = f"with {'; '.join(differing)}" if differing else f"by another version of {model_type}"
        raise CacheError(f"{database.filename}: this response cache was written {how}; use a new path")
    database[CACHE_KEY] = identity
    database.commit()


def refuse_non_finite(requests: Sequence[Instance], scores: Sequence[float], variant: Variant, dtype: object) -> None:
    """Refuses scores that are not numbers: an accuracy over such scores would look like a result.

    Args:
        requests: What was asked.
        scores: Their loglikelihoods.
        variant: What was asked about it.
        dtype: Of the model.

    Raises:
        ModelError: A score is NaN or infinite.
    """
    for request, score in zip(requests, scores, strict=True):
        if not math.isfinite(score):
            where = f"document {request.doc_id} of task {request.task_name}"
            raise ModelError(
                f"{variant.name} gives a loglikelihood of {score} on {where}: the model overflows in "
                f"{str(dtype).removeprefix('torch.')}; use dtype=float32 or bfloat16, or a smaller strength"
            )


class TrainingDocumentGuard:
    """Warns where a booster is evaluated on documents that it was trained on.

    Hashing a document takes longer than looking it up: what was hashed for one variant serves all others.
    """

    def __init__(self) -> None:
        """Nothing is hashed yet."""
        self._hashes: dict[tuple[str, Any], set[str]] = {}

    def check(self, variant: Variant, requests: Sequence[Instance]) -> None:
        """Logs a warning for each task some of whose documents the variant's booster was trained on."""
        if variant.booster is None:
            return
        provenance = variant.booster.provenance
        if provenance.unlisted:
            logger.warning(
                "the list of the booster's %d training documents is missing (NAME.safetensors.documents.txt); cannot "
                "check whether the result is held-out",
                provenance.unlisted,
            )
        if not provenance.hashes:
            return
        seen: dict[str, set[Any]] = defaultdict(set)
        trained_on: dict[str, set[Any]] = defaultdict(set)
        for request in requests:
            task = str(request.task_name)
            if not isinstance(request.doc, dict) or request.doc_id in seen[task]:
                continue
            seen[task].add(request.doc_id)
            if not provenance.hashes.isdisjoint(self._hashed(task, request)):
                trained_on[task].add(request.doc_id)
        for task, ids in trained_on.items():
            logger.warning(
                "%d of %d documents of %s are among the booster's training documents: the result is not held-out",
                len(ids),
                len(seen[task]),
                task,
            )

    def _hashed(self, task: str, request: Instance) -> set[str]:
        key = (task, request.doc_id)
        if key not in self._hashes:
            context = request.args[0] if isinstance(request.args[0], str) else ""
            self._hashes[key] = documents.possible_hashes(request.doc, context)
        return self._hashes[key]


class OtherModelGuard:
    """Warns, once a booster, when it was made for another model than the one that runs."""

    def __init__(self) -> None:
        """Nobody is warned yet."""
        self._warned: set[str] = set()

    def check(self, variant: Variant, model: ModelIdentity) -> None:
        """Logs the warning where it is due."""
        if variant.booster is None or variant.booster.sha256 in self._warned:
            return
        base = variant.booster.provenance.base_model
        if base is None or not model.differs_from(base):
            return
        self._warned.add(variant.booster.sha256)
        logger.warning("the booster was made for %s, not for %s; expect no gain", base.label, model.label)


def check_letters(task: str, requests: Sequence[Request]) -> None:
    """Refuses a letter-format task where the tokenizer begins two of its letters with the same token.

    Raises:
        TaskError: It does; the published procedure tells letters apart by their first token.
    """
    if LETTER_TASK.fullmatch(task) and len({request.continuation[0] for request in requests}) < len(requests):
        raise TaskError(
            f"task {task}: this tokenizer encodes several answer letters with the same first token, so they cannot "
            f"be told apart; use the task's cloze form"
        )


def check_letter_requests(requests: Sequence[Instance], encode: Callable[[str, str], Request]) -> None:
    """See `check_letters`, for the requests of an evaluation.

    Args:
        requests: Of any tasks.
        encode: Makes tokens of a context and a continuation.

    Raises:
        TaskError: See `check_letters`.
    """
    letters: dict[str, dict[str, Request]] = defaultdict(dict)
    for request in requests:
        task = str(request.task_name)
        if LETTER_TASK.fullmatch(task):
            context, letter = request.args
            if letter not in letters[task]:
                letters[task][letter] = encode(context, letter)
    for task, encoded in letters.items():
        check_letters(task, list(encoded.values()))
