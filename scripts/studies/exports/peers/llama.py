"""Scores rows of tokens with llama.cpp, in an environment that has llama-cpp-python and nothing of aft_harness.

Reads a request of JSON from stdin: `model` (a GGUF file), `control_vectors` (pairs of file and scale), `rows` (pairs of
token ids and the place where the continuation starts), `logits` (of how many rows all logits are kept) and `output`.
Writes an .npz: `scores`, the loglikelihood of each continuation, and `logits`, those of the kept rows laid end to end.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

import llama_cpp
import numpy as np
from gguf import GGUFReader

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))


def loaded(path: str) -> tuple[ctypes.c_void_p, ctypes.c_void_p]:
    """A model and a context with a cache of plain float32."""
    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers = 0
    # With AMX some releases crash on blocks of 4 bits that were packed anew.
    parameters.use_extra_bufts = False
    model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
    if not model:
        sys.exit(f"llama.cpp does not load {path}")
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 2048
    settings.n_threads = settings.n_threads_batch = THREADS
    settings.flash_attn_type = 0
    settings.type_k = settings.type_v = 0  # float32
    return model, llama_cpp.llama_init_from_model(model, settings)


def steer(model: ctypes.c_void_p, context: ctypes.c_void_p, vectors: list[tuple[str, float]]) -> None:
    """Adds control vectors up as `llama-server --control-vector-scaled` does, and hands over the sum."""
    width, layers = llama_cpp.llama_model_n_embd(model), llama_cpp.llama_model_n_layer(model)
    total = np.zeros((layers - 1, width), dtype=np.float32)  # from layer 1 on
    for path, scale in vectors:
        for tensor in GGUFReader(path).tensors:
            total[int(tensor.name.removeprefix("direction.")) - 1] += np.float32(scale) * np.array(tensor.data)
    data = total.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if llama_cpp.llama_set_adapter_cvec(context, data, total.size, width, 1, layers):
        sys.exit("llama.cpp does not take the control vector")


def logits_of(
    model: ctypes.c_void_p, context: ctypes.c_void_p, tokens: list[int], first: int, known: int
) -> np.ndarray:
    """The logits of the positions from `first` on, [positions, vocabulary].

    The `known` first tokens are in the context already, from the row before.
    """
    llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(context), 0, known, -1)
    tokens, first = tokens[known:], first - known
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    try:
        batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            batch.token[place], batch.pos[place] = token, known + place
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, place >= first
        if llama_cpp.llama_decode(context, batch):
            sys.exit("llama.cpp does not decode the row")
    finally:
        llama_cpp.llama_batch_free(batch)
    pointer = llama_cpp.llama_get_logits(context)
    return np.ctypeslib.as_array(pointer, shape=(len(tokens) - first, vocabulary)).copy()


def shared(first: list[int], second: list[int]) -> int:
    """How many tokens two rows begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))


def main() -> None:
    """Answers one request."""
    request = json.load(sys.stdin)
    llama_cpp.llama_log_set(SILENT, ctypes.c_void_p(0))
    model, context = loaded(request["model"])
    if request["control_vectors"]:
        steer(model, context, request["control_vectors"])
    scores, kept = [], []
    before: list[int] = []
    for number, (tokens, start) in enumerate(request["rows"]):
        inputs, whole = tokens[:-1], number < request["logits"]
        first = 0 if whole else start - 1
        known = 0 if whole else min(first, shared(before, inputs))
        logits = logits_of(model, context, inputs, first, known)
        before = inputs
        if whole:
            kept.append(logits)
        rows = logits[start - 1 - first :].astype(np.float64)
        top = rows.max(axis=1, keepdims=True)
        logprobs = rows - top - np.log(np.exp(rows - top).sum(axis=1, keepdims=True))
        scores.append(logprobs[np.arange(len(rows)), tokens[start:]].sum())
    np.savez(request["output"], scores=np.array(scores), logits=np.concatenate(kept) if kept else np.zeros((0, 0)))


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def SILENT(level: int, text: bytes, _: object) -> None:
    """Keeps llama.cpp's notices off the screen; errors are shown."""
    if level == 4:
        sys.stderr.write(text.decode(errors="replace"))


if __name__ == "__main__":
    main()
