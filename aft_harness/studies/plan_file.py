"""The YAML file of a plan as plain values: bounded in size, so that no file can hang or exhaust what reads it.

Knows YAML. Knows nothing of what a plan says.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from aft_harness.errors import FileError, TaskError
from aft_harness.files import read_regular

SIZE_LIMIT = 2**17
"""Bytes of a file; the plan of a large study has a few thousand."""

NODES = 20_000
"""Values of a plan, each as often as aliases repeat it."""

DEPTH = 12
"""Lists and mappings inside each other, at most."""

LARGEST = 2**63 - 1
"""Of whole numbers, in either direction."""

_SCALAR = 4000
"""Characters of one value. A whole number of so many digits, also hexadecimal ones, can still be shown in a message."""


def read(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        TaskError: With the file's name: it cannot be read, is no mapping, or holds what no plan needs.
    """
    try:
        text = read_regular(path, SIZE_LIMIT).decode("utf-8")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _measured(node, {}, set())
        content = loader.construct_document(node) if node else None
    except TaskError as error:
        raise TaskError(f"{path}: {error}") from None
    except FileError as error:
        raise TaskError(f"{path}: {error}") from None
    # Not YAMLError alone: of a value that is not what its tag says, PyYAML raises whatever it stumbles over.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TaskError(f"{path}: cannot be read as YAML ({reason[:200]})") from None
    if not isinstance(content, dict):
        raise TaskError(f"{path}: not a plan; a plan has the keys models, train and evaluate")
    return content


def check_plain(value: Any, path: tuple[str, ...] = ()) -> None:
    """Refuses what is neither text, number, list nor mapping, and numbers that nothing counts.

    Raises:
        TaskError: With the place of the value.
    """
    if len(path) > DEPTH:
        raise TaskError(f"{path[0]!r} is nested more than {DEPTH} levels deep")
    if isinstance(value, Mapping):
        for key, part in value.items():
            check_plain(key, path)
            check_plain(part, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            check_plain(part, (*path, str(index)))
    elif not isinstance(value, str | int | float | None):
        where = ".".join(path) or "a key"
        raise TaskError(f"{where}: unexpected type {type(value).__name__}; put text in quotes")
    elif isinstance(value, int) and abs(value) > LARGEST:
        raise TaskError(f"{'.'.join(path) or 'a key'}: a whole number of more than 64 bits")


def _measured(node: Any, sizes: dict[int, int], above: set[int], depth: int = 0) -> int:
    """How many values a node stands for, with all that aliases repeat; refuses what is too much or doubtful.

    Before anything is made of it: a kilobyte of aliases of aliases can stand for more values than any memory holds.
    """
    if node is None:
        return 0
    if id(node) in above:
        raise TaskError("an alias refers to a value that contains it")
    if depth > DEPTH:
        raise TaskError(f"values are nested more than {DEPTH} levels deep")
    if isinstance(node, yaml.ScalarNode):
        if len(node.value) > _SCALAR:
            raise TaskError(f"line {node.start_mark.line + 1}: a value of {len(node.value)} characters is too long")
        return 1
    if id(node) not in sizes:
        parts = node.value
        if isinstance(node, yaml.MappingNode):
            _refuse_repeated_keys(node)
            parts = [part for pair in node.value for part in pair]
        inside = above | {id(node)}
        sizes[id(node)] = 1 + sum(_measured(part, sizes, inside, depth + 1) for part in parts)
    if sizes[id(node)] > NODES:
        raise TaskError(f"more than {NODES} values, including those repeated by aliases")
    return sizes[id(node)]


def _refuse_repeated_keys(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)
        if name in seen:
            # YAML's readers keep the last of them without a word.
            raise TaskError(f"line {key.start_mark.line + 1}: the key {key.value!r} is given twice")
        seen.add(name)
