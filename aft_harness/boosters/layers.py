"""The grammar of decoder layers: `all`, `middle`, `8`, `8,16`, `4-8`, `1-`, counted from 0.

Knows text and numbers. Options, YAML and Python use the same forms; how many layers there are is known only once a
model is, so a value is parsed early and resolved late.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aft_harness.errors import ModelError, ParseError

_RANGE = re.compile(r"(?P<first>[0-9]{1,5})(?P<dash>-(?P<last>[0-9]{1,5})?)?")
_WORDS = ("all", "middle")
_MOST = 10**5  # what the text's five digits can count


@dataclass(frozen=True)
class Layers:
    """Which decoder layers, before the model is known.

    Attributes:
        text: In the grammar, in its shortest form.
    """

    text: str

    @classmethod
    def of(cls, value: Layers | str | int | Sequence[int]) -> Layers:
        """Reads layers from text, one index, or a list of indices.

        Raises:
            ParseError: The value is not of the grammar.

        Example:
            >>> Layers.of([4, 5, 6, 16]).text
            '4-6,16'
        """
        if isinstance(value, Layers):
            return value
        if isinstance(value, bool | bytes | bytearray) or not isinstance(value, str | int | Sequence):
            raise _refused(value)
        if isinstance(value, int):
            value = [value]
        if not isinstance(value, str):
            if not 0 < len(value) <= _MOST or not all(map(_is_index, value)):
                raise _refused(value)
            return cls(ranges(value))
        words = value.strip()
        if words not in _WORDS:
            for part in words.split(","):
                match = _RANGE.fullmatch(part.strip())
                if match is None or (match["last"] and int(match["last"]) < int(match["first"])):
                    raise _refused(value)
        return cls(",".join(part.strip() for part in words.split(",")))

    def resolve(self, count: int) -> tuple[int, ...]:
        """The layers of a model that has `count` of them, ascending.

        Raises:
            ModelError: A layer that the model does not have.
        """
        if self.text == "all":
            return tuple(range(count))
        if self.text == "middle":
            return (count // 2,)
        found: set[int] = set()
        for match in map(_RANGE.fullmatch, self.text.split(",")):
            assert match is not None
            first = int(match["first"])
            last = int(match["last"]) if match["last"] else (count - 1 if match["dash"] else first)
            found.update(check_layer(layer, count) for layer in (first, *range(first, last + 1)))
        return tuple(sorted(found))

    def __str__(self) -> str:
        """The grammar's text."""
        return self.text


def check_layer(layer: int, count: int) -> int:
    """Returns `layer` when it is an index of one of `count` decoder layers.

    Raises:
        ModelError: It is negative or too large.
    """
    if not 0 <= layer < count:
        raise ModelError(f"layer {layer} is out of range: the model has layers 0 to {count - 1}")
    return layer


def ranges(layers: Iterable[int]) -> str:
    """Layers as text in the grammar, ascending: `8`, `8,16`, `0-29`."""
    runs: list[list[int]] = []
    for layer in sorted(set(layers)):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST


def _refused(value: object) -> ParseError:
    try:
        shown = repr(value)
    except (ValueError, RecursionError):  # a whole number of very many digits, a list in itself
        shown = f"of type {type(value).__name__}"
    return ParseError(f"layers {shown}: expected all, or layers and ranges such as 8, 8,16, 4-8 or 1-")
