"""Quantises a GGUF file with llama.cpp, in an environment that has llama-cpp-python and nothing of aft_harness.

Reads a request of JSON from stdin: `model` (a GGUF file in float32), `type` (as in `llama_cpp.LLAMA_FTYPE_MOSTLY_...`)
and `output`.
"""

from __future__ import annotations

import ctypes
import json
import sys

import llama_cpp


def main() -> None:
    """Answers one request."""
    request = json.load(sys.stdin)
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{request['type']}")
    llama_cpp.llama_log_set(SILENT, ctypes.c_void_p(0))
    if llama_cpp.llama_model_quantize(request["model"].encode(), request["output"].encode(), ctypes.byref(parameters)):
        sys.exit(f"llama.cpp does not quantise {request['model']}")


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def SILENT(level: int, text: bytes, _: object) -> None:
    """Keeps llama.cpp's notices off the screen."""


if __name__ == "__main__":
    main()
