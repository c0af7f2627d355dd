"""From pairs to what training and evaluation take: the same examples that tasks give, and a task of lm-eval.

Knows a model's tokens and chat template. Which pairs are for training, for choosing and for the reported result is
decided as for tasks, by a seeded hash of the question; what is learned from them is the training floor's work.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aft_harness.boosters import documents
from aft_harness.errors import ModelError, TaskError
from aft_harness.harness.chat import chat_text
from aft_harness.harness.examples import Example, TaskExamples
from aft_harness.harness.pair_sources import PairSet
from aft_harness.harness.pair_task import PairTask, Rendered, pair_task
from aft_harness.harness.pairs import Message, Pair, questions
from aft_harness.harness.selection import HELD_OUT_PAIRS, PairSelection, PromptFormat
from aft_harness.harness.splits import SeededRows
from aft_harness.text import shared_start

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DrawnPairs:
    """The pairs of one set, by their three roles.

    Attributes:
        examples: Those for training and development.
        held_out: The others, as a task to evaluate; None where there are none.
    """

    examples: TaskExamples
    held_out: PairTask | None


def draw_pairs(
    given: PairSet, selection: PairSelection, lm: Any, prompt_format: PromptFormat | None = None, split_seed: int = 0
) -> DrawnPairs:
    """Training, development and held-out pairs of one set; one prompt is never on two sides.

    Of held-out pairs with one prompt the first is kept: they are what a test counts, and it counts prompts.

    Args:
        given: The pairs.
        selection: How many of them are for what.
        lm: A `SteeredHFLM`, for tokens and the chat template.
        prompt_format: Whether texts go through the chat template as well, and a system message.
        split_seed: Seed of the order.

    Raises:
        TaskError: Too few pairs, or one that the model cannot read; names file and line.
    """
    prompt_format = prompt_format or PromptFormat()
    asked = questions(given.pairs)
    hashes = {index: documents.text_hash(text) for index, text in enumerate(asked)}
    keys = {index: documents.words_hash(text) for index, text in enumerate(asked)}
    rows = SeededRows(hashes, keys.__getitem__)
    count = len(asked)
    held_out = min(count // 5, HELD_OUT_PAIRS) if selection.held_out is None else selection.held_out
    reported, rest = rows.carve(rows.ordered(hashes, split_seed), held_out)
    development, training = rows.carve(rest, selection.dev_docs)
    if not training or len(reported) < held_out or len(development) < selection.dev_docs:
        roles = {"held-out": held_out, "development": selection.dev_docs}
        needed = " and ".join(f"{number} {role} pairs" for role, number in roles.items() if number)
        raise TaskError(
            f"{given.name}: {needed} leave none of {count} for training (pairs with one prompt stay together)"
        )
    training = training[: selection.limit]
    first = {hashes[index]: index for index in reversed(reported)}
    reported = [index for index in reported if first[hashes[index]] == index]
    made = {
        index: rendered(given.pairs[index], asked[index], lm, prompt_format)
        for index in (*training, *development, *reported)
    }
    _warn_where_words_meet([given.pairs[index] for index in training], prompt_format)

    def example(index: int) -> Example:
        each = made[index]
        requests = tuple(lm.encode(each.context, continuation) for continuation in each.continuations)
        known = (given.name, hashes[index], each.question)
        return Example(*known, requests, (0,), each.texts, selection.weight, shown=each.context)

    first_pair = given.pairs[0]
    examples = TaskExamples(
        task=given.name,
        version=given.version,
        kind="text" if first_pair.rejected is None else "pair",
        split=given.rows,
        num_fewshot=0,
        train=[example(index) for index in training],
        development=[example(index) for index in development],
        prompt_format=replace(prompt_format, apply_chat_template=_templated(first_pair, prompt_format)),
        held_out=len(reported),
    )
    task = pair_task(given.name, given.version, [made[index] for index in reported]) if reported else None
    return DrawnPairs(examples, task)


def evaluated_pairs(given: PairSet, lm: Any, prompt_format: PromptFormat | None = None) -> PairTask:
    """A whole set as a task to evaluate, with the first pair of each prompt.

    Raises:
        TaskError: A pair that the model cannot read; names file and line.
    """
    asked = questions(given.pairs)
    first: dict[str, int] = {}
    for index, text in enumerate(asked):
        first.setdefault(documents.text_hash(text), index)
    if dropped := len(asked) - len(first):
        logger.warning("%s: %d pairs left out (same prompt as an earlier pair)", given.name, dropped)
    kept = [rendered(given.pairs[index], asked[index], lm, prompt_format or PromptFormat()) for index in first.values()]
    return pair_task(given.name, given.version, kept)


def rendered(pair: Pair, question: str, lm: Any, prompt_format: PromptFormat) -> Rendered:
    """A pair as the model reads it: chat messages through its template, texts as they are with the end-of-text token.

    Args:
        pair: The pair.
        question: What tells it apart.
        lm: A `SteeredHFLM`.
        prompt_format: See `draw_pairs`.

    Raises:
        TaskError: It cannot be read by the model; names file and line.
    """
    if _templated(pair, prompt_format):
        context, continuations = _through_template(pair, lm, prompt_format.system_instruction)
    else:
        if prompt_format.system_instruction:
            raise TaskError(f"{pair.place}: a system message needs chat messages or the chat template")
        end = lm.tokenizer.eos_token or ""
        context, continuations = str(pair.prompt), [text.removesuffix(end) + end for text in pair.texts]
    for field, continuation in zip(("prompt and chosen text", "prompt and rejected text"), continuations, strict=False):
        length = len(lm.tok_encode(context + continuation))
        if length > lm.max_length:
            raise TaskError(
                f"{pair.place}: {field} have {length} tokens, more than the model's {lm.max_length}; shorten or remove "
                f"the pair"
            )
    return Rendered(question, context, tuple(continuations), pair.texts)


def _templated(pair: Pair, prompt_format: PromptFormat) -> bool:
    return pair.chat or prompt_format.apply_chat_template


def _through_template(pair: Pair, lm: Any, system: str | None) -> tuple[str, list[str]]:
    """The prompt up to where the answer begins, and each answer up to its end."""
    messages = _messages(pair, system)
    try:
        context = chat_text(lm, messages)
        whole = [chat_text(lm, [*messages, _answer(text)], answered=True) for text in pair.texts]
        # Some templates say less before an answer that is known than before one that is to be written.
        context = shared_start(context, *whole) if not all(text.startswith(context) for text in whole) else context
    except ModelError as error:
        if lm.tokenizer.chat_template is None:
            way_out = "; give pairs of text instead" if pair.chat else ""
            raise TaskError(f"{pair.place}: {error}{way_out}") from None
        raise TaskError(f"{pair.place}: {error}") from None
    last = messages[-1]["content"].strip()
    if last not in context:
        raise TaskError(f"{pair.place}: the chat template changes the prompt when an answer follows")
    return context, [_ended(text[len(context) :], lm) for text in whole]


def _messages(pair: Pair, system: str | None) -> list[Message]:
    if isinstance(pair.prompt, str):
        if not pair.prompted:
            raise TaskError(f"{pair.place}: has no prompt that the chat template could send as the user's message")
        messages: list[Message] = [{"role": "user", "content": pair.prompt}]
    else:
        messages = list(pair.prompt)
    if not system:
        return messages
    if messages[0]["role"] == "system":
        raise TaskError(f"{pair.place}: has a system message of its own; leave out the system instruction")
    return [{"role": "system", "content": system}, *messages]


def _answer(text: str) -> Mapping[str, str]:
    return {"role": "assistant", "content": text}


def _ended(continuation: str, lm: Any) -> str:
    """An answer without the white space that some templates put after the token that ends it."""
    shortened = continuation.rstrip()
    end = lm.tokenizer.eos_token
    return shortened if end and shortened.endswith(end) else continuation


def _warn_where_words_meet(pairs: Sequence[Pair], prompt_format: PromptFormat) -> None:
    """Warns where prompts and texts are joined into one word, which hardly anybody wants."""
    first = pairs[0]
    if _templated(first, prompt_format) or not first.prompted:
        return
    if not any(str(pair.prompt)[-1:].isspace() or pair.chosen[:1].isspace() for pair in pairs):
        logger.warning(
            "%s: no white space stands between the prompts and the texts (%r); they are joined as they are, as in TRL",
            first.place.rpartition(": ")[0],
            f"{str(first.prompt)[-20:]}{first.chosen[:20]}",
        )
