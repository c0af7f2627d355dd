"""Scores rows of tokens with vLLM, in an environment that has vLLM and nothing of aft_harness.

Reads a request of JSON from stdin: `model` (a folder), `rows` (pairs of token ids and the place where the continuation
starts) and `output`. Writes an .npz: `scores`, the loglikelihood of each continuation.
"""

from __future__ import annotations

import json
import os
import sys

import numpy as np


def main() -> None:
    """Answers one request."""
    request = json.load(sys.stdin)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM, SamplingParams

    rows = request["rows"]
    longest = max(len(tokens) for tokens, _ in rows) + 1
    llm = LLM(request["model"], dtype="float32", max_model_len=longest, enforce_eager=True)
    settings = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    prompts = [{"prompt_token_ids": tokens} for tokens, _ in rows]
    scores = []
    for (tokens, start), output in zip(rows, llm.generate(prompts, settings, use_tqdm=False), strict=True):
        found = output.prompt_logprobs
        scores.append(sum(found[place][tokens[place]].logprob for place in range(start, len(tokens))))
    np.savez(request["output"], scores=np.array(scores))


if __name__ == "__main__":
    main()
