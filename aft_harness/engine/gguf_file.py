"""The GGUF container of llama.cpp: a header that is read with every length checked, and the bytes of a new one.

Knows names, types and places. A file is read where it lies: metadata and tensor entries are kept as the bytes that they
are, so that a copy of a model repeats them unchanged, whatever types a later llama.cpp adds. Knows no boosters.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import NamedTuple

from aft_harness.errors import BoosterError
from aft_harness.text import printable

MAGIC = b"GGUF"
VERSIONS = (2, 3)
"""That have the layout described here; 1 is from before quantised models were common."""

F32 = 0
"""Of the types of tensors; see `BLOCKS`."""

BLOCKS = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    20: (32, 18),
    23: (256, 136),
    30: (1, 2),
}
"""Numbers in a block and its bytes, by type: F32, F16, Q4_0 to Q8_0, Q2_K to Q6_K, IQ4_NL, IQ4_XS, BF16."""

_HEAD = struct.Struct("<4sIQQ")
_ALIGNMENT = "general.alignment"
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_NESTED = 4
_ENTRIES = 2**24
"""Of metadata or of tensors, at most: more than any model has."""

Scalar = str | int | float | bool


def is_gguf(model: object) -> bool:
    """Whether a model is named by a GGUF file."""
    return isinstance(model, str | Path) and str(model).lower().endswith(".gguf")


class GgufError(BoosterError):
    """A file that is not GGUF, or damaged."""


class TensorEntry(NamedTuple):
    """Where a tensor lies.

    Attributes:
        name: Such as `blk.3.ffn_down.weight`.
        shape: The size of the innermost dimension first, as llama.cpp counts them.
        type: See `BLOCKS`.
        offset: In bytes, from the start of the data.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int

    @property
    def size(self) -> int | None:
        """Bytes; None of a type that is not known here."""
        if self.type not in BLOCKS:
            return None
        numbers, length = BLOCKS[self.type]
        return -(-math.prod(self.shape) // numbers) * length


@dataclass(frozen=True)
class GgufHeader:
    """What stands in front of a GGUF file's data.

    Attributes:
        version: Of the format.
        metadata: Texts and numbers by key; an array is None.
        tensors: By name, in the file's order.
        keys: Number of metadata entries.
        raw_metadata: The bytes of all of them.
        raw_tensors: The bytes of the entries of all tensors.
        data_start: Where the data begins.
        alignment: What offsets are multiples of.
    """

    version: int
    metadata: Mapping[str, Scalar | None]
    tensors: Mapping[str, TensorEntry]
    keys: int
    raw_metadata: bytes
    raw_tensors: bytes
    data_start: int
    alignment: int

    @property
    def architecture(self) -> str:
        """What llama.cpp calls the kind of model, such as `llama`; empty where the file does not say."""
        return self.text("general.architecture") or ""

    def text(self, key: str) -> str | None:
        """A text of the metadata."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        """A whole number of the metadata."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def padded(self, size: int) -> int:
        """The next place that tensors may begin at."""
        return _padded(size, self.alignment)


def read_header(data: bytes | mmap) -> GgufHeader:
    """Reads a header.

    Args:
        data: The file, or the memory that it is mapped into, of which no more than the header is looked at.

    Raises:
        GgufError: It is no GGUF file, one of another version or byte order, or damaged; one line says which.
    """
    if data[:4] != MAGIC:
        raise GgufError("is not a GGUF file")
    return _read(_Cursor(data))


def written_header(
    metadata: bytes, keys: int, tensors: bytes, count: int, alignment: int = 32, version: int = 3
) -> bytes:
    """The bytes in front of the data.

    Args:
        metadata: Entries, see `metadata_entry`.
        keys: Their number.
        tensors: Entries, see `tensor_entry`.
        count: Their number.
        alignment: As `general.alignment` says among the entries; 32 where nothing does.
        version: Of the format.
    """
    head = _HEAD.pack(MAGIC, version, count, keys) + metadata + tensors
    return head.ljust(_padded(len(head), alignment), b"\0")


def metadata_entry(key: str, value: Scalar) -> bytes:
    """The bytes of one metadata entry: a text, a truth value, a whole number of 32 bits, or a float of 64 bits."""
    if isinstance(value, str):
        return _text(key) + struct.pack("<I", _STRING) + _text(value)
    code = 7 if isinstance(value, bool) else 4 if isinstance(value, int) else 12
    return _text(key) + struct.pack(f"<I{_SCALARS[code]}", code, value)


def tensor_entry(entry: TensorEntry) -> bytes:
    """The bytes of a tensor's entry."""
    shape = struct.pack(f"<I{len(entry.shape)}Q", len(entry.shape), *entry.shape)
    return _text(entry.name) + shape + struct.pack("<IQ", entry.type, entry.offset)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


class _Cursor:
    """A place in the bytes that moves on as they are read, and never beyond their end."""

    def __init__(self, data: bytes | mmap) -> None:
        self.data, self.place = data, 0

    def taken(self, size: int) -> bytes:
        if size > len(self.data) - self.place:
            raise GgufError("is cut short or damaged: its header ends too early")
        self.place += size
        return self.data[self.place - size : self.place]

    def unpacked(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self.taken(struct.calcsize(form)))

    def number(self, form: str) -> int:
        return self.unpacked(form)[0]

    def text(self) -> str:
        data = self.taken(self.number("<Q"))
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise GgufError("is damaged: a text in its header is not UTF-8") from None

    def skip_array(self, depth: int = 0) -> None:
        """Passes over an array, whose numbers nobody here asks for."""
        kind, length = self.unpacked("<IQ")
        if kind in _SCALARS:
            self.taken(length * struct.calcsize(_SCALARS[kind]))
            return
        # Each item has a length in front, so that a number of items that cannot be is seen before they are counted.
        if kind not in (_STRING, _ARRAY) or depth > _NESTED or length > (len(self.data) - self.place) // 8:
            raise GgufError("is damaged: its header holds an array that cannot be")
        for _ in range(length):
            if kind == _ARRAY:
                self.skip_array(depth + 1)
            else:
                self.taken(self.number("<Q"))


def _read(cursor: _Cursor) -> GgufHeader:
    _, version, count, keys = _HEAD.unpack(cursor.taken(_HEAD.size))
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        reason = "of big-endian byte order" if swapped else f"of version {version}"
        raise GgufError(
            f"is a GGUF file {reason}; versions {VERSIONS[0]} and {VERSIONS[1]}, little-endian, can be read"
        )
    if max(count, keys) > _ENTRIES:
        raise GgufError("is damaged: its header counts more entries than there can be")
    begin = cursor.place
    metadata: dict[str, Scalar | None] = {}
    for _ in range(keys):
        key = cursor.text()
        if key in metadata:
            raise GgufError(f"is damaged: its metadata holds {printable(key)} twice")
        metadata[key] = _value(cursor)
    middle = cursor.place
    tensors: dict[str, TensorEntry] = {}
    for _ in range(count):
        entry = _tensor(cursor)
        if entry.name in tensors:
            raise GgufError(f"is damaged: it holds {printable(entry.name)} twice")
        tensors[entry.name] = entry
    alignment = metadata.get(_ALIGNMENT, 32)
    if isinstance(alignment, bool) or not isinstance(alignment, int) or not 0 < alignment <= 2**20:
        raise GgufError(f"is damaged: its {_ALIGNMENT} cannot be")
    return GgufHeader(
        version,
        metadata,
        tensors,
        keys,
        cursor.data[begin:middle],
        cursor.data[middle : cursor.place],
        _padded(cursor.place, alignment),
        alignment,
    )


def _value(cursor: _Cursor) -> Scalar | None:
    kind = cursor.number("<I")
    if kind == _STRING:
        return cursor.text()
    if kind == _ARRAY:
        cursor.skip_array()
        return None
    if kind not in _SCALARS:
        raise GgufError(f"is damaged: its metadata holds a value of type {kind}")
    return cursor.number(f"<{_SCALARS[kind]}")


def _tensor(cursor: _Cursor) -> TensorEntry:
    name, dimensions = cursor.text(), cursor.number("<I")
    if not 0 < dimensions <= 8:
        raise GgufError(f"is damaged: {printable(name)} has {dimensions} dimensions")
    shape = cursor.unpacked(f"<{dimensions}Q")
    kind, offset = cursor.unpacked("<IQ")
    return TensorEntry(name, shape, kind, offset)


def checked_offsets(header: GgufHeader, file_size: int) -> None:
    """Checks that tensors follow each other without gaps and end where the file ends, as llama.cpp demands.

    Raises:
        GgufError: They do not: the file is cut short, or damaged.
    """
    expected: int | None = 0
    entries: Sequence[TensorEntry] = list(header.tensors.values())
    for entry in entries:
        if expected is not None and entry.offset != expected:
            raise GgufError(f"is damaged: {printable(entry.name)} does not lie where it should")
        end = None if entry.size is None else entry.offset + entry.size
        if (end or entry.offset) > file_size - header.data_start:
            raise GgufError(f"is cut short: {printable(entry.name)} lies beyond its end")
        expected = None if end is None else header.padded(end)
