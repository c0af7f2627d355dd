"""Generation of texts, against lm-eval's `hf`: the likeliest, and several drawn for each prompt."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from functools import partial
from typing import Any

from material import model, requests
from timing import Measured, Outcome, alternate, median


def greedy(task: str, shots: int, dtype: str, docs: int, reps: int, sampler: str = "default") -> Outcome:
    """The texts of one task; agreement is the share of equal texts."""
    ours, theirs = model("steered-hf", dtype), model("hf", dtype)
    asked, _ = requests(task, shots, docs, sampler)
    for lm in (ours, theirs):
        lm.generate_until(asked[:1], disable_tqdm=True)
    first, second = alternate(partial(_timed, ours, asked), partial(_timed, theirs, asked), reps)
    same = [float(left == right) for left, right in zip(first[0].results, second[0].results, strict=True)]
    return Outcome("hf", dtype, docs, median(first), median(second), agreement=statistics.mean(same))


def _timed(lm: Any, asked: Any) -> Measured:
    start = time.perf_counter()
    texts = lm.generate_until(asked, disable_tqdm=True)
    return Measured(time.perf_counter() - start, texts)


def sampled(task: str, shots: int, dtype: str, docs: int, samples: int, tokens: int, reps: int) -> Outcome:
    """Several texts a prompt, against as many runs of `hf` that draw one each, of which one is timed.

    All texts have the same number of tokens: what is drawn differs, and a side with shorter texts would win by that.
    """
    from aft_harness.engine.text_batch import Manner, Prompt
    from aft_harness.harness.generation_requests import prompt_tokens

    ours, theirs = model("steered-hf", dtype), model("hf", dtype)
    asked, _ = requests(task, shots, docs)
    prompts = [Prompt(prompt_tokens(ours, request.args[0], tokens), tokens, tuple(range(samples))) for request in asked]
    settings = {"until": [], "do_sample": True, "temperature": 1.0, "top_k": 0, "max_gen_toks": tokens}
    drawing = [
        replace(request, arguments=(request.args[0], {**settings, "min_new_tokens": tokens})) for request in asked
    ]

    def together() -> Measured:
        start = time.perf_counter()
        texts = ours.writer.write(prompts, Manner(temperature=1.0), ours.rows_at_once())
        assert all(len(text.tokens) == tokens for each in texts for text in each)
        return Measured(time.perf_counter() - start, texts)

    def one_by_one() -> Measured:
        once = _timed(theirs, drawing)
        return Measured(samples * once.seconds, once.results)

    ours.writer.writes(prompts)
    ours.writer.write(prompts[:1], Manner(temperature=1.0), 1)
    theirs.generate_until(drawing[:1], disable_tqdm=True)
    first, second = alternate(together, one_by_one, reps)
    note = f"{samples} texts of {tokens} tokens a prompt; {samples * docs * tokens / median(first):.0f} tokens a second"
    return Outcome(f"{samples} runs of hf", dtype, docs, median(first), median(second), note=note)
