"""lm-eval's own `vllm`, timed, in an environment that has vLLM and need not have aft_harness.

Reads lines of JSON from stdin and answers each with one on stdout. The first has the arguments of the model type and is
answered with the `seconds` that loading took. Each further one has a `kind` of request and the `requests`' arguments,
and is answered with the `seconds` that they took and their `results`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Answers until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints is no answer
    for line, work in zip(sys.stdin, works(), strict=False):
        answers.write(json.dumps(work(json.loads(line))) + "\n")
        answers.flush()


def works() -> Any:
    """What is done with each line."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from lm_eval.api.instance import Instance
    from lm_eval.models.vllm_causallms import VLLM

    loaded: list[Any] = []

    def load(arguments: dict[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        loaded.append(VLLM(**arguments))
        return {"seconds": time.perf_counter() - start}

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        kind = asked["kind"]
        requests = [Instance(kind, {}, tuple(each), index) for index, each in enumerate(asked["requests"])]
        loaded[0].model.reset_prefix_cache()  # of the same prompts when they were asked the last time
        start = time.perf_counter()
        results = getattr(loaded[0], kind)(requests, disable_tqdm=True)
        return {"seconds": time.perf_counter() - start, "results": results}

    yield load
    while True:
        yield answer


if __name__ == "__main__":
    main()
