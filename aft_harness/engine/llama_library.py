"""The library llama.cpp, as llama-cpp-python brings it: found, imported, kept from the screen, asked why it refused.

Knows the package and the header of a GGUF file. The package is imported when a file is opened and not before.
"""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import os
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from aft_harness.engine.gguf_file import GgufError, read_header
from aft_harness.errors import FileError, ModelError
from aft_harness.files import check_regular
from aft_harness.text import printable

_WARNING = 3  # of llama.cpp's levels: what is said from here on is kept
_said: list[str] = []


def library() -> ModuleType:
    """The module `llama_cpp`, whose notices are kept off the screen from now on.

    Raises:
        ModelError: It is not installed, or cannot be loaded.
    """
    if importlib.util.find_spec("llama_cpp") is None:
        raise ModelError(
            "GGUF files run with llama-cpp-python, which is not installed: pip install 'aft-harness[gguf]' (it "
            "compiles llama.cpp, which takes about three minutes)"
        )
    try:
        import llama_cpp
    except Exception as error:  # compiled parts raise whatever they like where they do not fit
        raise ModelError(f"llama-cpp-python cannot be imported: {printable(error)}") from None
    _listen(llama_cpp)
    return llama_cpp


@cache
def _listen(library: ModuleType) -> Any:
    """Keeps what llama.cpp says in `_said`; the callback must live as long as the library."""

    @library.llama_log_callback  # type: ignore[untyped-decorator]
    def listen(level: int, text: bytes, _: object) -> None:
        if level >= _WARNING:
            _said.append(text.decode(errors="replace").strip())
            del _said[:-20]

    library.llama_log_set(listen, ctypes.c_void_p(0))
    library.llama_backend_init()
    return listen


def heard() -> None:
    """Forgets what llama.cpp said."""
    _said.clear()


def complaint() -> str:
    """The first thing that llama.cpp complained of, without the names of its functions."""
    lines = [line for line in _said if line and "failed to load model" not in line]
    return printable(lines[0].rpartition("error loading model: ")[2]) if lines else "llama.cpp gives no reason"


def checked_file(path: str | os.PathLike[str]) -> Path:
    """The path of a whole GGUF file of a model, as far as its header tells.

    Raises:
        ModelError: There is none, or it is something else.
    """
    place = Path(path)
    try:
        if place.is_dir():
            raise FileError("a folder; name the .gguf file in it")
        if not check_regular(place, "GGUF file"):
            raise FileError("is empty")
        with place.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            header = read_header(mapped)
    except (FileError, GgufError, OSError) as error:
        raise ModelError(f"{place}: {error}") from None
    if (parts := header.number("split.count") or 1) > 1 and (header.number("split.no") or 0) > 0:
        raise ModelError(f"{place}: is not the first of {parts} parts; name the first one")
    if header.architecture == "controlvector":
        raise ModelError(f"{place}: a control vector, not a model; `aft import` makes a booster of it")
    if not header.architecture or header.number(f"{header.architecture}.block_count") is None:
        raise ModelError(f"{place}: holds no language model")
    return place
