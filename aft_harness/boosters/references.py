"""The `vector=` grammar: from what a user typed to a variant, which is a booster at a strength under a name.

Knows paths, names, `hf://` addresses and how several are combined. Knows nothing of models.

A reference is `REF[:strength]`, several are joined by `+`. An existing path wins whole, whatever characters it holds.
"""

from __future__ import annotations

import math
import os
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aft_harness.boosters import catalogue, file_format, hub
from aft_harness.boosters.booster import Booster
from aft_harness.boosters.card_header import SUFFIX
from aft_harness.boosters.mixing import mix
from aft_harness.boosters.variant import Variant
from aft_harness.errors import BoosterError, ReferenceSyntaxError
from aft_harness.files import exists

FORM = f"REF[:strength][+REF[:strength]]..., REF a {SUFFIX} path, a name of `aft list`, or {hub.FORM}"

_NUMBER = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_NAME = r"[a-z0-9._/-]+"
# A `+` separates only after one of these, so that it may stand inside a folder's name.
_COMPLETE = re.compile(rf"(?:.*\.safetensors(?:@[\w./-]+)?|{_NAME})(?::{_NUMBER})?", re.DOTALL)
_STRENGTH = re.compile(rf"(?P<location>.+):(?P<strength>{_NUMBER})", re.DOTALL)

LONGEST = 10_000
"""Characters of a specification as text; its names are looked for from each `+` on."""

NESTED = 20
"""Lists, mappings and pairs inside each other, at most."""

VectorSpec = str | os.PathLike[str] | Booster | Mapping[Any, float] | Sequence[Any]


@dataclass(frozen=True)
class Reference:
    """One booster that a user named.

    Attributes:
        source: A path, a name, an `hf://` address, or a booster already in memory.
        strength: The factor on its delta.
    """

    source: str | Booster
    strength: float = 1.0

    def load(self) -> Booster:
        """Reads the booster.

        Raises:
            BoosterError: The file is missing or cannot be used.
            ReferenceSyntaxError: The address cannot be parsed.
        """
        if isinstance(self.source, Booster):
            return self.source
        if self.source.startswith(hub.SCHEME):
            return hub.fetch(hub.Address.parse(self.source)).load()
        if entry := self.entry:
            return entry.load()
        if not self.source.endswith(SUFFIX) and not exists(self.source):
            raise BoosterError(f"{self.source}: {catalogue.unknown(self.source)}")
        return file_format.load(self.source)

    @property
    def entry(self) -> catalogue.Entry | None:
        """What a name stands for; None for everything else. A file at that path comes first, a folder does not."""
        source = self.source
        if isinstance(source, Booster) or source.endswith(SUFFIX) or (exists(source) and not os.path.isdir(source)):
            return None
        return catalogue.find(source)

    @property
    def label(self) -> str:
        """What the user typed, without folders, which are nobody else's business."""
        if isinstance(self.source, Booster):
            return f"booster {self.source.sha256[:12]}"
        return self.source if self.source.startswith(hub.SCHEME) or self.entry else Path(self.source).name


def parse(spec: VectorSpec) -> list[Reference]:
    """Parses what stands behind `vector=` without reading any file.

    Args:
        spec: A string of the grammar, a path, a booster, a mapping from references to strengths, or a sequence of all
            these and of (reference, strength) pairs.

    Raises:
        ReferenceSyntaxError: With the offending value and the form that is expected.

    Example:
        >>> parse("math.safetensors:0.5+code.safetensors")
        [Reference(source='math.safetensors', strength=0.5), Reference(source='code.safetensors', strength=1.0)]
    """
    return _parse(spec, 0)


def load(spec: VectorSpec, scale: float = 1.0) -> Variant:
    """The variant that a specification names.

    A single reference keeps the booster's own identity and carries its strength; several are mixed into one booster of
    strength 1.

    Args:
        spec: See `parse`.
        scale: Factor on the whole.

    Raises:
        AftError: The specification cannot be parsed, or a booster cannot be read.
    """
    references = parse(spec)
    if not math.isfinite(scale):
        raise ReferenceSyntaxError(f"scale {scale} is not a finite number")
    loaded = [(reference.load(), reference.strength) for reference in references]
    booster, strength = loaded[0] if len(loaded) == 1 else (mix(loaded), 1.0)
    return Variant(_name(references), booster, _finite(strength * scale, _name(references)))


def _name(references: Sequence[Reference]) -> str:
    """The labels of references, with the strengths that are not 1."""
    return "+".join(
        reference.label if reference.strength == 1 else f"{reference.label}:{reference.strength:g}"
        for reference in references
    )


def _parse(spec: VectorSpec, depth: int) -> list[Reference]:
    if depth > NESTED:
        raise ReferenceSyntaxError(f"vector: lists are nested more than {NESTED} levels deep; expected {FORM}")
    if isinstance(spec, Booster):
        return [Reference(spec)]
    if isinstance(spec, str):
        return _parse_text(spec)
    if isinstance(spec, os.PathLike) and isinstance(path := os.fspath(spec), str):
        return [Reference(path)]
    if isinstance(spec, Mapping) and spec:
        return [part for key, strength in spec.items() for part in _weighted(key, strength, depth + 1)]
    if isinstance(spec, Sequence) and not isinstance(spec, bytes | bytearray | memoryview) and spec:
        references: list[Reference] = []
        for item in spec:
            pair = isinstance(item, Sequence) and not isinstance(item, str) and len(item) == 2
            if pair and not isinstance(item[1], str | os.PathLike | Booster | Mapping | Sequence):
                references += _weighted(item[0], item[1], depth + 1)
            else:
                references += _parse(item, depth + 1)
        return references
    raise ReferenceSyntaxError(f"vector={_shown(spec)} is not a booster reference; expected {FORM}")


def _parse_text(text: str) -> list[Reference]:
    if not text.strip():
        raise ReferenceSyntaxError(f"vector= is empty; expected {FORM}")
    if len(text) > LONGEST:
        raise ReferenceSyntaxError(f"vector= has {len(text)} characters, more than {LONGEST}; expected {FORM}")
    if "\0" in text:
        raise ReferenceSyntaxError(f"vector={text!r} contains a null byte; expected {FORM}")
    if exists(text):
        return [Reference(text)]
    segments, start = [], 0
    for plus in (match.start() for match in re.finditer(r"\+", text)):
        if _COMPLETE.fullmatch(text, start, plus):
            segments.append(text[start:plus])
            start = plus + 1
    segments.append(text[start:])
    return [_parse_segment(segment, text) for segment in segments]


def _parse_segment(segment: str, text: str) -> Reference:
    match = _STRENGTH.fullmatch(segment)
    location, strength = (match["location"], float(match["strength"])) if match else (segment, 1.0)
    if not match and (tail := re.search(rf"{re.escape(SUFFIX)}(?:@[\w./-]+)?:(?P<strength>.*)$", segment)):
        raise ReferenceSyntaxError(f"vector={text}: strength {tail['strength']!r} is not a number; expected {FORM}")
    if not location.strip():
        raise ReferenceSyntaxError(f"vector={text}: a reference is missing next to '+'; expected {FORM}")
    if location.startswith(hub.SCHEME):
        hub.Address.parse(location)
    return Reference(location, _finite(strength, text))


def _weighted(source: VectorSpec, strength: Any, depth: int) -> list[Reference]:
    if isinstance(strength, bool) or not isinstance(strength, int | float):
        raise ReferenceSyntaxError(f"vector: strength {_shown(strength)} of {_shown(source)} is not a number")
    try:
        factor = float(strength)
    except OverflowError:  # a whole number beyond all floats
        factor = math.inf
    parts = _parse(source, depth)
    return [Reference(part.source, _finite(part.strength * factor, _shown(source))) for part in parts]


_REPR = reprlib.Repr()
_REPR.maxstring = 200


def _shown(value: object) -> str:
    """A value in a message, cut where it is long or deep."""
    try:
        return _REPR.repr(value)
    except ValueError:  # a whole number of very many digits
        return f"a value of type {type(value).__name__}"


def _finite(strength: float, text: object) -> float:
    if not math.isfinite(strength):
        raise ReferenceSyntaxError(f"vector={text}: strength {strength} is not a finite number")
    return strength
