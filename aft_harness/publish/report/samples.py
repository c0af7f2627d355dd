"""The documents that were gained and lost: their texts, and what the model thought of them without and with a booster.

Knows the samples that lm-eval writes. A document is gained or lost by its task's first metric, as in the tables.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aft_harness.results.pairing import by_document, compared
from aft_harness.results.runs import booster_name, paired_runs

if TYPE_CHECKING:
    from aft_harness.results.pairing import Line
    from aft_harness.results.runs import Run

MOST = 200
"""Documents of a comparison that are shown, of those gained and of those lost each: those that changed most."""

LONGEST = 4000
"""Characters of a text that are shown."""


def changed_documents(runs: Sequence[Sequence[Run]], lower_is_better: Collection[str] = ()) -> list[dict[str, Any]]:
    """The documents whose outcome a booster changed, as values for JSON.

    Args:
        runs: Of lm-eval, those of one folder together.
        lower_is_better: Metrics of which less is better.

    Returns:
        For each booster and task: `booster`, `sha256`, `strength`, `task`, `metric`, `gained`, `lost` (how many) and
        `documents`, see `_document`, gained ones first.
    """
    found = []
    for together in runs:
        for run, baseline, task in paired_runs(together):
            first = next(compared(baseline.samples[task], run.samples[task]), None)
            if first is not None:
                metric, filter_name, _ = first
                before, after = (by_document(each.samples[task], filter_name) for each in (baseline, run))
                found.append(_comparison(run, task, metric, before, after, metric in lower_is_better))
    return found


def _comparison(
    run: Run,
    task: str,
    metric: str,
    before: Mapping[tuple[str, int], Line],
    after: Mapping[tuple[str, int], Line],
    lower: bool,
) -> dict[str, Any]:
    variant = run.variant
    assert variant is not None
    changes = []
    for key, line in before.items():
        change = float(after[key][metric]) - float(line[metric])
        if change:
            changes.append((-change if lower else change, key))
    gained = sorted((pair for pair in changes if pair[0] > 0), key=lambda pair: (-pair[0], pair[1][1]))
    lost = sorted((pair for pair in changes if pair[0] < 0), key=lambda pair: (pair[0], pair[1][1]))
    shown = [*gained[:MOST], *lost[:MOST]]
    return {
        "booster": run.name or booster_name(variant),
        "sha256": variant.booster_sha256,
        "strength": variant.strength,
        "seed": variant.seed,
        "task": task,
        "metric": metric,
        "gained": len(gained),
        "lost": len(lost),
        "documents": [_document(before[key], after[key], metric, change > 0) for change, key in shown],
    }


def _document(before: Line, after: Line, metric: str, gained: bool) -> dict[str, Any]:
    """A document: `id`, `gained`, its `prompt`, `before` and `after` (the metric), and either its `choices` or `texts`.

    Of a choice: its `text`, whether it is `right`, and its loglikelihood `before` and `after`. Of texts: the `target`
    and what was written or scored `before` and `after`.
    """
    asked = list(_arguments(before))
    written = any(continuation is None for _, continuation in asked)
    arguments = [(context, continuation or "") for context, continuation in asked]
    contexts = list(dict.fromkeys(context for context, _ in arguments))
    told: dict[str, Any] = {
        "id": before["doc_id"],
        "gained": gained,
        "prompt": _shown(contexts[0] if len(contexts) == 1 else ""),
        "before": before[metric],
        "after": after[metric],
    }
    scores = [_scores(line) for line in (before, after)]
    texts = [context + continuation if len(contexts) > 1 else continuation for context, continuation in arguments]
    if arguments and not written and all(len(each) == len(arguments) for each in scores):
        right = _right(before.get("target"), [continuation for _, continuation in arguments], contexts)
        told["choices"] = [
            {"text": _shown(text or "the whole text"), "right": place in right, "before": one, "after": other}
            for place, (text, one, other) in enumerate(zip(texts, *scores, strict=True))
        ]
    else:
        told["target"] = _shown(before.get("target", ""))
        told["texts"] = [_shown(_answer(line)) for line in (before, after)]
    return told


def _arguments(line: Line) -> Iterator[tuple[str, str | None]]:
    """Context and continuation of each request.

    Of a text that is scored as a whole the continuation is empty, of one that the model writes it is None.
    """
    given = line.get("arguments")
    for one in given.values() if isinstance(given, Mapping) else given or ():
        parts = (
            list(one.values()) if isinstance(one, Mapping) else list(one) if isinstance(one, list | tuple) else [one]
        )
        context = parts[0] if parts and isinstance(parts[0], str) else ""
        continuation = parts[1] if len(parts) > 1 else ""
        yield context, continuation if isinstance(continuation, str) else None


def _scores(line: Line) -> list[float | None]:
    """The loglikelihood of each request; nothing where there are none."""
    found: list[float | None] = []
    for response in line.get("filtered_resps") or ():
        value = response[0] if isinstance(response, list | tuple) and response else response
        try:
            number = float(value)
        except (TypeError, ValueError):
            return []
        found.append(number if math.isfinite(number) else None)
    return found


def _right(target: object, continuations: Sequence[str], contexts: Sequence[str]) -> set[int]:
    """The places of the correct choices, as far as the target tells."""
    targets = target if isinstance(target, list) else [target]
    found = set()
    for each in targets:
        text = str(each).strip()
        if text.isdecimal() and int(text) < len(continuations):
            found.add(int(text))
        elif len(contexts) == 1:
            found |= {place for place, continuation in enumerate(continuations) if continuation.strip() == text}
    return found


def _answer(line: Line) -> str:
    responses = line.get("filtered_resps") or line.get("resps") or [""]
    first = responses[0]
    while isinstance(first, list | tuple) and first:
        first = first[0]
    return str(first)


def _shown(text: object) -> str:
    """A text of bounded length; of a prompt with examples the end counts."""
    whole = str(text)
    return whole if len(whole) <= LONGEST else f"… {whole[-LONGEST:]}"
