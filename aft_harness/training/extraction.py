"""Makes boosters from activation statistics, without training: the heuristics that AFT is compared with.

Knows examples and a loaded model. A direction of norm one is extracted; how strong it should be is the business of
`sweep.py`.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.layers import check_layer
from aft_harness.boosters.provenance import Documents
from aft_harness.engine.rows import batches
from aft_harness.engine.trie import pack
from aft_harness.errors import TrainingError
from aft_harness.harness.examples import TaskExamples
from aft_harness.harness.model import SteeredHFLM
from aft_harness.progress import OnProgress, ignore
from aft_harness.training.development import outcomes
from aft_harness.training.objective import ranking_objectives
from aft_harness.versions import versions

MEAN_DIFFERENCE_STRENGTHS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
FUNCTION_VECTOR_STRENGTHS = (0.5, 1.0, 1.5, 2.0, 3.0)

DIRECT_PROMPT = "Question: {question}\nAnswer:"
REASONING_PROMPT = "Question: {question}\nLet's think step by step to find the correct answer:\n"

QUESTIONS = (
    "Which planet is closest to the sun?",
    "What is 17 plus 26?",
    "Why does ice float on water?",
    "Write a short poem about the sea.",
    "How do you say good morning in Spanish?",
    "Who painted the Mona Lisa?",
    "What is 9 times 12?",
    "How does a bicycle stay upright?",
    "Write two lines of verse about autumn.",
    "How do you say thank you in French?",
)
"""Two each of general knowledge, arithmetic, explanation, poem and translation."""

TOKENS_PER_PASS = 4096


def mean_difference(
    lm: SteeredHFLM,
    task: TaskExamples,
    layer: int | None = None,
    on_progress: OnProgress = ignore,
) -> Booster:
    """Mean activation of documents answered correctly minus mean of those answered incorrectly, of norm one.

    Activations are those of the question alone, without few-shot examples or choices: the layer's output, averaged over
    the question's tokens.

    Args:
        lm: A model without a booster.
        task: Examples with choices; the training ones are used.
        layer: Whose output; None means half the number of layers.
        on_progress: Called with how many requests are scored, and of how many.

    Raises:
        TrainingError: The task has no choices, or all its documents are answered correctly, or none.
        ModelError: A layer out of range.
    """
    if task.kind != "choice":
        raise TrainingError(
            f"mean-difference: task {task.task} has no choices, so answers cannot be correct or incorrect"
        )
    layer = _layer(lm, layer, len(lm.engine.layers) // 2)
    (found,) = outcomes(lm, task.train, ranking_objectives([task]), on_progress=on_progress)
    right = [bool(outcome.right) for outcome in found]
    if all(right) or not any(right):
        what = "correctly" if all(right) else "incorrectly"
        raise TrainingError(
            f"mean-difference: all {len(right)} documents of {task.task} were answered {what}, so there is no "
            "difference; use more or other documents"
        )
    tokens = [lm.tok_encode(example.question) for example in task.train]
    means = torch.stack(activations(lm, tokens, layer, lambda hidden: hidden.mean(0)))
    chosen = torch.tensor(right)
    details = {
        "tasks": [task.record()],
        "prompting": asdict(task.prompt_format),
        "answered_correctly": int(chosen.sum()),
        "documents": Documents.learned(example.document for example in task.train),
    }
    return _booster(lm, "mean-difference", layer, means[chosen].mean(0) - means[~chosen].mean(0), details)


def function_vector(lm: SteeredHFLM, questions: Sequence[str] = QUESTIONS, layer: int | None = None) -> Booster:
    """Mean last-token activation of reasoning prompts minus that of direct prompts for the same questions, of norm one.

    Args:
        lm: A model without a booster.
        questions: What both kinds of prompts ask.
        layer: Whose output; None means 16 as first published, or the middle one of a model with fewer layers.

    Raises:
        TrainingError: No questions, or prompts that a model cannot tell apart.
        ModelError: A layer out of range.
    """
    if not questions:
        raise TrainingError("function-vector: there are no questions")
    count = len(lm.engine.layers)
    layer = _layer(lm, layer, 16 if count > 16 else count // 2)
    last = []
    for prompt in (REASONING_PROMPT, DIRECT_PROMPT):
        tokens = [lm.tok_encode(prompt.format(question=question)) for question in questions]
        last.append(torch.stack(activations(lm, tokens, layer, lambda hidden: hidden[-1])).mean(0))
    return _booster(lm, "function-vector", layer, last[0] - last[1], {"tasks": [], "questions": list(questions)})


def activations(
    lm: SteeredHFLM, sequences: Sequence[Sequence[int]], layer: int, reduce: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """What `reduce` makes of the unsteered output of a layer for each sequence of tokens.

    Args:
        lm: A model without a booster.
        sequences: Token ids, cut from the left to the model's length.
        layer: Whose output.
        reduce: Gets float32 [tokens, hidden] on the CPU.

    Raises:
        TrainingError: A sequence without tokens.
    """
    if not all(sequences):
        raise TrainingError("a question without tokens has no activations")
    kept = [sequence[-lm.max_length :] for sequence in sequences]
    found: dict[int, Tensor] = {}
    # Questions share hardly any tokens: plain rows lose nothing, and every model takes them.
    engine = lm.engine.plain()
    for batch in batches(pack(kept, [len(sequence) for sequence in kept], 1), TOKENS_PER_PASS):
        hidden = engine.hidden(batch, layer).float().cpu()
        for outputs, row in zip(hidden, batch.rows, strict=True):
            found.update({member: reduce(outputs[tail]) for member, tail in zip(row.members, row.tails, strict=True)})
    return [found[index] for index in range(len(kept))]


def _layer(lm: SteeredHFLM, layer: int | None, default: int) -> int:
    return check_layer(default if layer is None else layer, len(lm.engine.layers))


def _booster(lm: SteeredHFLM, method: str, layer: int, direction: Tensor, details: dict[str, object]) -> Booster:
    norm = float(direction.norm())
    if not norm > 0:
        raise TrainingError(f"{method}: both kinds of prompt have the same activations at layer {layer}")
    provenance = {
        "base_model": lm.base_model,
        "method": method,
        "raw_norm": norm,
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **details,
    }
    return Booster.static({layer: direction / norm}, provenance)
