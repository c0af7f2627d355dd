"""Digests of values: the same for the same content in every process and on every machine.

Knows plain values, functions and classes. Neither an address in memory, nor the order of a set, nor a path becomes part
of a digest.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import re
from collections.abc import Mapping, Set
from pathlib import PurePath
from types import CodeType, ModuleType
from typing import Any

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def digest(value: object) -> str:
    """SHA-256 of a value's content."""
    return hashlib.sha256(json.dumps(canonical(value), sort_keys=True).encode()).hexdigest()


def canonical(value: object) -> Any:
    """A value as JSON has it: functions and classes by name and source, sets in order, what else there is by its type.

    Args:
        value: Anything; mappings and sequences may hold anything again.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): canonical(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(part) for part in value]
    if isinstance(value, Set):
        return sorted((canonical(part) for part in value), key=lambda part: json.dumps(part, sort_keys=True))
    if callable(getattr(value, "tolist", None)):  # arrays and tensors, whose printed form leaves most of them out
        return canonical(value.tolist())  # type: ignore[attr-defined]
    if isinstance(value, bytes):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    if isinstance(value, functools.partial):
        return {"partial": [canonical(value.func), canonical(value.args), canonical(value.keywords)]}
    if isinstance(value, PurePath):
        return {"path": value.name}
    if inspect.ismethod(value):
        return {"method": value.__name__, "of": canonical(value.__self__)}
    if isinstance(value, type) or inspect.isroutine(value):
        return {"name": value.__qualname__, "module": _module(value), "source": _source(value)}
    if isinstance(value, ModuleType):
        return {"module": value.__name__.rpartition(".")[2]}
    return {"type": type(value).__qualname__, "module": _module(type(value)), **_content(value)}


def _content(value: object) -> dict[str, Any]:
    """What an object holds; of one that tells nothing of itself, its printed form without its address."""
    if type(value).__repr__ is not object.__repr__:
        return {"shown": _ADDRESS.sub("", repr(value))}
    held = getattr(value, "__dict__", {})
    return {"holds": {str(name): canonical(part) for name, part in held.items() if part is not value}}


def _module(value: Any) -> str:
    # A function of a task's own file has a module that is named after its path.
    return re.split(r"[./\\]", str(getattr(value, "__module__", "")).removesuffix(".py"))[-1]


def _source(value: Any) -> str:
    code = getattr(value, "__code__", None)
    try:
        source = inspect.getsource(value)
    except (OSError, TypeError):  # written at a prompt, or in another language
        return json.dumps(_compiled(code)) if code else ""
    # Of two on one line the source is the same.
    return source + json.dumps(_compiled(code)) if code and code.co_name == "<lambda>" else source


def _compiled(code: CodeType) -> list[Any]:
    constants = [_compiled(part) if isinstance(part, CodeType) else canonical(part) for part in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), constants]
