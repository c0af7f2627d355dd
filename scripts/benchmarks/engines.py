"""`steered-hf` against lm-eval's `vllm`, which runs in a process and an environment of its own.

Both load the same folder in the same dtype and answer the same requests in turn; loading is told apart. Knows the
processes; what they are asked comes from `material.py`.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
from machine import operations
from material import model, requests
from timing import Measured, Outcome, alternate, compared, median

from aft_harness.demo import model_folder

PEER = Path(__file__).parent / "peers" / "vllm_answers.py"
PYTHON = "VLLM_PYTHON"
"""The variable that names the Python of an environment with vLLM and lm-eval."""
MADE = Path(__file__).parents[2] / ".cache" / "exports" / "environments" / "vllm" / "bin" / "python"
"""That of `make verify-exports`, which is taken otherwise."""

ARGUMENTS = {"batch_size": "auto", "max_model_len": 2048, "enforce_eager": True}
CORES = "0-1"
"""Cores that vLLM computes on; by itself it keeps one of two free."""


def loglikelihoods(task: str, shots: int, dtype: str, docs: int, reps: int) -> Outcome:
    """The choices of one task."""
    asked, groups = requests(task, shots, docs)
    with _vllm(dtype) as peer:
        loading = time.perf_counter()
        ours = model("steered-hf", dtype)
        note = _loading(time.perf_counter() - loading, peer.loading)

        def run(requests: Sequence[Any] = asked) -> Measured:
            start = time.perf_counter()
            results = ours.loglikelihood(list(requests), disable_tqdm=True)
            return Measured(time.perf_counter() - start, results)

        for side in (run, peer.loglikelihood):
            side(asked[:16])
        first, second = alternate(run, lambda: peer.loglikelihood(asked), reps)
    needed = operations(ours, [ours.encode(*request.args) for request in asked])
    return compared("vllm", dtype, docs, first, second, groups, needed, note)


def generation(task: str, shots: int, dtype: str, docs: int, reps: int) -> Outcome:
    """The texts of one task; agreement is the share of equal texts."""
    asked, _ = requests(task, shots, docs)
    with _vllm(dtype) as peer:
        loading = time.perf_counter()
        ours = model("steered-hf", dtype)
        note = _loading(time.perf_counter() - loading, peer.loading)

        def run() -> Measured:
            start = time.perf_counter()
            texts = ours.generate_until(asked, disable_tqdm=True)
            return Measured(time.perf_counter() - start, texts)

        peer.generate_until(asked[:1])
        first, second = alternate(run, lambda: peer.generate_until(asked), reps)
    same = [float(left == right) for left, right in zip(first[0].results, second[0].results, strict=True)]
    return Outcome("vllm", dtype, docs, median(first), median(second), agreement=statistics.mean(same), note=note)


def _loading(ours: float, theirs: float) -> str:
    return f"loading takes {ours:.1f} s, vLLM {theirs:.1f} s, and neither is counted"


class _Peer:
    """The other process, which runs while it answers."""

    loading = 0.0
    """Seconds that loading took."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def load(self, arguments: dict[str, Any]) -> None:
        """Loads its model."""
        self.loading = self._answer(arguments)["seconds"]

    def loglikelihood(self, asked: Sequence[Any]) -> Measured:
        """Scores requests."""
        return self._measured("loglikelihood", asked)

    def generate_until(self, asked: Sequence[Any]) -> Measured:
        """Writes texts."""
        return self._measured("generate_until", asked)

    def _measured(self, kind: str, asked: Sequence[Any]) -> Measured:
        found = self._answer({"kind": kind, "requests": [each.args for each in asked]})
        results = found["results"]
        return Measured(found["seconds"], [tuple(each) if isinstance(each, list) else each for each in results])

    def _answer(self, asked: dict[str, Any]) -> Any:
        assert self._process.stdin and self._process.stdout
        self.proceed()
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        if not (line := self._process.stdout.readline()):
            raise click.ClickException("vLLM ended; its messages stand above")
        os.killpg(self._process.pid, signal.SIGSTOP)  # one of its processes waits busily, on a core that we need
        return json.loads(line)

    def proceed(self) -> None:
        """Lets it run, as it does while it answers."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGCONT)


@contextmanager
def _vllm(dtype: str) -> Iterator[_Peer]:
    python = Path(os.environ.get(PYTHON) or MADE)
    if not python.is_file():
        raise click.ClickException(
            f"{python}: no such file; set {PYTHON} to the Python of an environment with vLLM and lm-eval, or run "
            "python scripts/studies/verify_exports.py --engine vllm, which makes one"
        )
    settings = {"VLLM_CPU_OMP_THREADS_BIND": CORES, **os.environ}
    settings.pop("TQDM_DISABLE", None)  # vLLM reads the time off a bar, and divides by it
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([str(python), str(PEER)], env=settings, start_new_session=True, **pipes) as process:
        peer = _Peer(process)
        try:
            peer.load({"pretrained": str(model_folder()), "dtype": dtype, **ARGUMENTS})
            yield peer
        finally:
            assert process.stdin
            process.stdin.close()  # after which it ends
            peer.proceed()
