"""The GGUF header, against the reader and the tables of the gguf package."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import pytest
from gguf_cases import gguf_model

from aft_harness.engine.gguf_file import (
    BLOCKS,
    GgufError,
    TensorEntry,
    checked_offsets,
    metadata_entry,
    read_header,
    tensor_entry,
    written_header,
)


def test_sizes_of_blocks_are_those_of_the_gguf_package() -> None:
    known = {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {kind: known[kind] for kind in BLOCKS} == BLOCKS


@pytest.mark.parametrize("alignment", [32, 64])
def test_a_header_is_read_as_the_gguf_package_reads_it(tmp_path: Path, alignment: int) -> None:
    path = gguf_model(tmp_path / "m.gguf", alignment=alignment, general__name="a — b", test__rate=0.5)
    data = path.read_bytes()
    header, reader = read_header(data), gguf.GGUFReader(path)
    assert (header.data_start, header.alignment, header.version) == (reader.data_offset, alignment, 3)
    assert (header.architecture, header.text("general.name")) == ("llama", "a — b")
    assert (header.number("llama.block_count"), header.number("test.small")) == (4, -3)
    assert header.metadata["test.double"] == 0.1 and header.metadata["test.rate"] == 0.5
    assert header.metadata["tokenizer.ggml.tokens"] is None and header.metadata["test.flags"] is None
    assert set(header.metadata) == {name for name in reader.fields if not name.startswith("GGUF.")}
    for mine, theirs in zip(header.tensors.values(), reader.tensors, strict=True):
        assert (mine.name, mine.type, mine.size) == (theirs.name, theirs.tensor_type, theirs.n_bytes)
        assert mine.shape == tuple(theirs.shape) and header.data_start + mine.offset == theirs.data_offset
    checked_offsets(header, len(data))
    again = written_header(header.raw_metadata, header.keys, header.raw_tensors, len(header.tensors), alignment)
    assert again == data[: header.data_start]


def test_entries_are_read_by_the_gguf_package(tmp_path: Path) -> None:
    pairs = {"general.architecture": "x", "a.text": "é", "a.count": 7, "a.rate": 0.1, "a.on": True}
    entries = [metadata_entry(key, value) for key, value in pairs.items()]
    tensor = tensor_entry(TensorEntry("t", (2,), 0, 0))
    header = written_header(b"".join(entries), len(entries), tensor, 1)
    (tmp_path / "x.gguf").write_bytes(header + struct.pack("<2f", 1.0, 2.0))
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    assert {name: reader.fields[name].contents() for name in pairs} == pairs
    assert list(reader.tensors[0].data) == [1.0, 2.0]


def test_what_is_no_such_header_is_one_line(tmp_path: Path) -> None:
    good = gguf_model(tmp_path / "m.gguf").read_bytes()
    for data, reason in (
        (b"", "is not a GGUF file"),
        (b"GGML" + good[4:], "is not a GGUF file"),
        (b"GGUF" + struct.pack("<I", 1) + good[8:], "of version 1"),
        (b"GGUF" + struct.pack(">I", 3) + good[8:], "of big-endian byte order"),
        (good[:100], "ends too early"),
        (good[:8] + struct.pack("<Q", 2**60) + good[16:], "counts more entries"),
        (good[:8] + struct.pack("<QQ", 0, 2) + metadata_entry("a", 1) * 2, "holds a twice"),
        (good[:8] + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 2**60), "ends too early"),
        (
            good[:8] + struct.pack("<QQ", 0, 1) + metadata_entry("a", 1)[:9] + struct.pack("<IIQ", 9, 8, 2**50),
            "an array",
        ),
        (good[:8] + struct.pack("<QQ", 0, 1) + metadata_entry("general.alignment", "x"), "general.alignment cannot be"),
    ):
        with pytest.raises(GgufError, match=reason):
            read_header(data)
    header = read_header(good)
    with pytest.raises(GgufError, match=r"is cut short: output_norm\.weight lies beyond its end"):
        checked_offsets(header, len(good) - 25)
