"""A part of an evaluation: the answers of some of its passes, for a store from which all of it is put together.

Knows lm-eval's evaluator and `SharedPass`. Computes no metric: that is `evaluation.evaluate`'s work, which finds in the
store what the parts put there, and scores what none of them did.
"""

from __future__ import annotations

from collections.abc import Sequence

from lm_eval.api.instance import Instance

from aft_harness.boosters.variant import Variant
from aft_harness.engine.part import Part
from aft_harness.harness import evaluation
from aft_harness.harness.score_store import AnswerStore, Result
from aft_harness.harness.selection import PromptFormat
from aft_harness.harness.shared_pass import SharedPass, SteeredLM, VariantLM
from aft_harness.harness.tasks import Tasks
from aft_harness.progress import OnProgress, ignore
from aft_harness.slices import Slice


class _PartLM(VariantLM):
    """Answers for every variant at once, and only what belongs to the part."""

    def loglikelihood(self, requests: list[Instance]) -> list[Result]:
        """See `SharedPass`; warnings are left to who puts the evaluation together."""
        return self._shared.loglikelihood(requests, 0)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Scores nothing: what whole texts get is not stored."""
        return [0.0] * len(requests)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """See `SharedPass`."""
        for index in range(len(self._shared.models)):
            self._shared.generate_until(requests, index)
        return [""] * len(requests)


def answer(
    lm: SteeredLM,
    variants: Sequence[Variant],
    tasks: Sequence[str],
    prompt_format: PromptFormat | None = None,
    *,
    part: Part,
    store: AnswerStore,
    source: Tasks | None = None,
    limit: int | None = None,
    docs: Slice | None = None,
    confirm_run_unsafe_code: bool = False,
    on_progress: OnProgress = ignore,
) -> None:
    """Answers a part of what `evaluation.evaluate` asks with the same arguments, and puts it into the store.

    All requests are laid out as they are there, and passes of other parts are left out: the parts of an evaluation give
    to the last bit what one process gives. Samples and whole texts (perplexities) are in no part.

    Args:
        lm: See `evaluation.evaluate`.
        variants: See `evaluation.evaluate`.
        tasks: See `evaluation.evaluate`.
        prompt_format: See `evaluation.evaluate`.
        part: Which.
        store: Where the answers go; those that are there are not computed again.
        source: See `evaluation.evaluate`.
        limit: See `evaluation.evaluate`.
        docs: See `evaluation.evaluate`.
        confirm_run_unsafe_code: See `evaluation.evaluate`.
        on_progress: See `evaluation.evaluate`.

    Raises:
        BoosterError: A booster that does not fit the model.
        TaskError: An unknown task, or one that cannot be evaluated.
    """
    adapter = _PartLM(SharedPass(lm, variants, store, on_progress, part), 0)
    evaluation.ask(
        adapter,
        tasks,
        prompt_format,
        source=source,
        limit=limit,
        docs=docs,
        confirm_run_unsafe_code=confirm_run_unsafe_code,
    )
