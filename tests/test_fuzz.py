"""Whatever is read from outside ends in a value or in one line that says what is wrong: never in another exception.

Each fuzzer draws its inputs from a seed. `make verify-robustness`, which sets AFT_FUZZ, draws more than the normal run.
"""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from fuzz_cases import INPUTS, PROVENANCE, STRANGE, junk, mutated, strange, used, watched

from aft_harness.boosters import file_format, references
from aft_harness.boosters.booster import Booster
from aft_harness.boosters.file_format import sidecar
from aft_harness.boosters.layers import Layers
from aft_harness.boosters.provenance import Provenance
from aft_harness.cli import main
from aft_harness.errors import AftError
from aft_harness.harness.pair_sources import PairSet
from aft_harness.harness.pair_sources import read as read_pairs
from aft_harness.harness.pairs import questions
from aft_harness.slices import Slice, SplitSlice
from aft_harness.studies.plan import Plan

pytestmark = pytest.mark.timeout(300 + INPUTS // 20)


def test_provenance(tmp_path: Path) -> None:
    rng = random.Random(1)
    vectors = {1: torch.ones(4)}
    for _ in range(INPUTS):
        provenance = PROVENANCE
        for _ in range(rng.randrange(1, 4)):
            provenance = mutated(provenance, rng)
        with watched(tmp_path, provenance):
            if isinstance(provenance, dict):
                used(Booster.static(vectors, Provenance.of(json.loads(json.dumps(provenance)))))


def test_show_prints_as_many_lines_as_there_are_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(2)
    monkeypatch.chdir(tmp_path)
    booster = Booster.static({1: torch.ones(4)})
    booster.save("a.safetensors")
    plain = bytes(Path("a.safetensors").read_bytes())
    for _ in range(INPUTS // 20):
        provenance = mutated(PROVENANCE, rng)
        if not isinstance(provenance, dict):
            continue
        with_header(Path("a.safetensors"), plain, {**HEADER, "provenance": provenance})
        shown = CliRunner().invoke(main, ["show", "a.safetensors"])
        assert shown.exit_code in (0, 1) and (shown.exception is None or isinstance(shown.exception, SystemExit))
        if shown.exit_code:
            assert shown.stderr.count("\n") == 1 and shown.stdout == ""
            continue
        assert shown.stdout.replace("\n", "").isprintable()
        assert [line.split()[1] for line in shown.stdout.splitlines() if line.startswith("sha256 ")] == [booster.sha256]


HEADER: dict[str, Any] = {
    "format_version": 1,
    "injections": {"1": {"kind": "static", "activation": "none", "input_norm": "none", "positions": "all"}},
    "provenance": PROVENANCE,
}


def with_header(path: Path, plain: bytes, header: Any, tensors: Any = None) -> None:
    """Writes a booster file's bytes with another metadata text, or other entries of tensors."""
    (size,) = struct.unpack("<Q", plain[:8])
    described = json.loads(plain[8 : 8 + size])
    described["__metadata__"] = {"aft": header if isinstance(header, str) else json.dumps(header)}
    if tensors is not None:
        described = {"__metadata__": described["__metadata__"], **tensors}
    text = json.dumps(described).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + plain[8 + size :])


def test_booster_files(tmp_path: Path) -> None:
    rng = random.Random(3)
    (tmp_path / "work").mkdir()
    path = tmp_path / "a.safetensors"
    Booster.static({1: torch.ones(4)}, PROVENANCE).save(path)
    plain = path.read_bytes()
    (size,) = struct.unpack("<Q", plain[:8])
    entries = {key: value for key, value in json.loads(plain[8 : 8 + size]).items() if key != "__metadata__"}
    for number in range(INPUTS):
        if number % 3 == 0:  # bytes
            data = bytearray(plain)
            for _ in range(rng.choice([1, 1, 2, 8, 64])):
                data[rng.randrange(len(data))] = rng.randrange(256)
            cut = rng.choice([len(data), len(data), rng.randrange(len(data))])
            path.write_bytes(bytes(data[:cut]) + rng.choice([b"", b"", b"\0" * 9]))
        elif number % 3 == 1:  # the metadata
            header = mutated(HEADER, rng)
            text = json.dumps(header)
            for _ in range(rng.choice([0, 0, 1, 3])):
                place = rng.randrange(len(text) + 1)
                text = (
                    text[:place]
                    + rng.choice(["{", "[" * 2000, '"', "9" * 5000, "\\ud800", "NaN", ""])
                    + text[place + 1 :]
                )
            with_header(path, plain, text)
        else:  # the tensors
            found = {rng.choice([name, "layers.-1.vector", "x", "layers.1."]): entry for name, entry in entries.items()}
            for entry in list(found.values()):
                changed = {**entry, rng.choice(["dtype", "shape", "data_offsets"]): None}
                changed["dtype"] = rng.choice(
                    ["F32", "F16", "BF16", "F64", "I64", "BOOL", "F8_E4M3", "F4", "U64", "C64", 3]
                )
                changed["shape"] = rng.choice([[4], [2, 2], [0], [], [-1], [2**40, 0], [2**62], "x"])
                changed["data_offsets"] = rng.choice([[0, 16], [0, 8], [0, 0], [16, 0], [0, 2**60], [-1, 16]])
                found = {**found, rng.choice([*found, "layers.1.vector", "layers.2.vector"]): changed}
            with_header(path, plain, HEADER, found)
        with watched(tmp_path, path.read_bytes()[:300]):
            used(file_format.load(path))


def test_sidecars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(4)
    monkeypatch.setattr(file_format, "DOCUMENTS_IN_FILE", 20)  # lists of thousands are slow
    path, hashes = tmp_path / "a.safetensors", [f"{number:016x}" for number in range(21)]
    Booster.static({1: torch.ones(4)}, {"documents": {"count": 21, "hashes": hashes}}).save(path)
    plain, listed = path.read_bytes(), sidecar(path).read_bytes()
    (size,) = struct.unpack("<Q", plain[:8])
    header = json.loads(json.loads(plain[8 : 8 + size])["__metadata__"]["aft"])
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "secret").write_text("root:x:0:0:root\n")
    for number in range(INPUTS):
        beside = sidecar(path)
        beside.unlink(missing_ok=True)
        data = bytearray(listed)
        for _ in range(rng.choice([0, 1, 5])):
            data[rng.randrange(len(data))] = rng.choice([0, 10, 13, 32, 48, 65, 97, 255, rng.randrange(256)])
        data = data[: rng.choice([len(data), len(data), 17, rng.randrange(len(data))])]
        kind = number % 20
        if kind == 0:
            os.mkfifo(beside)
        elif kind in (1, 2, 3):
            beside.symlink_to(["zero", "secret", beside.name][kind - 1])
        else:
            beside.write_bytes(bytes(data) * rng.choice([1, 1, 1, 2, 3]))
        documents = dict(header["provenance"]["documents"])
        if rng.random() < 0.5:
            del documents["sidecar_sha256"]
        if rng.random() < 0.3:
            documents = mutated(documents, rng)
        with_header(path, plain, {**header, "provenance": {"documents": documents}})
        caplog.clear()
        with watched(tmp_path, (documents, bytes(data[:100]))):
            provenance = file_format.load(path).provenance
            assert all(len(line) == 16 and int(line, 16) >= 0 for line in provenance.hashes)
            if isinstance(documents, dict) and documents.get("sidecar_sha256") and documents.get("sidecar") is True:
                assert provenance.hashes in (frozenset(), frozenset(hashes))


def test_the_vector_grammar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: object, **__: object) -> str:
        raise OSError("offline\nline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    monkeypatch.chdir(tmp_path)
    Booster.static({1: torch.ones(4)}).save("a.safetensors")
    Booster.static({1: torch.ones(3)}).save("b+c.safetensors")
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe.safetensors")
    rng = random.Random(5)
    pieces = [
        "a",
        "a.safetensors",
        "b+c.safetensors",
        ".safetensors",
        "+",
        ":",
        "@",
        "/",
        "..",
        "hf://",
        "o/r/f.safetensors",
    ]
    pieces += [
        "loop",
        "loop/",
        "pipe.safetensors",
        "x" * 300,
        "1",
        "0.5",
        "-",
        "1e999",
        "1e38",
        "nan",
        "inf",
        " ",
        "\n",
        "\t",
    ]
    pieces += [
        "\0",
        "\ud800",
        "\udc80",
        "\x1b[2J",
        "\u202e",
        "\u0663",
        "é",
        "\\",
        "~",
        "*",
        "[",
        "%",
        "=",
        ",",
        "main",
        "_",
    ]

    def spec(depth: int = 0) -> Any:
        kind = rng.random()
        if kind < 0.75 or depth > 3:
            return junk(rng, pieces)
        if kind < 0.8:
            return strange(rng)
        if kind < 0.9:
            return {spec(9): rng.choice([0.5, 1, -2, True, None, "x", float("nan"), 1e300, 10**400]) for _ in range(2)}
        if kind < 0.95:
            return (spec(depth + 1), rng.choice([0.5, True, None, 10**400, float("inf"), b"x", []]))
        return [spec(depth + 1) for _ in range(rng.randrange(4))]

    for _ in range(INPUTS):
        value, scale = spec(), rng.choice([1.0, 1.0, 0.5, 1e308, float("nan")])
        with watched(tmp_path, value):
            references.parse(value)
        with watched(tmp_path, value):
            variant = references.load(value, scale)
            assert variant.name and variant.folder


@pytest.mark.parametrize(
    "text",
    [
        "+".join(f"name{number:02d}-that-is-rather-long-{'x' * 10}" for number in range(8)),
        "a" * 100_000,
        "+" * 9_999,
        "a+" * 4_999,
        ".safetensors+" * 760,
        ".safetensors@" * 700 + "+" * 800,
        ".safetensors:1" * 700 + "+!" * 90,
        "a/" * 4_999,
        "hf://" + "a/" * 4_000 + "x.safetensors",
    ],
    ids=range(9),
)
def test_long_vectors_take_no_time(text: str, tmp_path: Path) -> None:
    with watched(tmp_path, text[:99]):
        references.load(text)


def test_layers_and_slices(tmp_path: Path) -> None:
    rng = random.Random(6)
    pieces = [
        *"0123456789,:-[] ",
        "all",
        "middle",
        "train",
        "99999",
        "9" * 30,
        "1" * 5000,
        "\u0663",
        "\n",
        "\x1b",
        "\ud800",
    ]
    values = [*STRANGE, b"12", bytearray(b"1"), range(10**12), [10**5000], 10**5000, [True], (1, 2), {1}, [2**70]]
    for _ in range(INPUTS):
        text = junk(rng, pieces, 8)
        with watched(tmp_path, text):
            assert all(0 <= layer < 40 for layer in Layers.of(text).resolve(40))
        with watched(tmp_path):
            Layers.of(rng.choice(values)).resolve(40)
        for parse in (Slice.parse, SplitSlice.parse):
            with watched(tmp_path, text):
                parsed: Any = parse(text)
                rows = parsed if isinstance(parsed, Slice) else parsed.rows
                assert list(rows.of(range(9))) == [index for index in range(9) if index in rows]


PLAN: dict[str, Any] = {
    "models": [{"pretrained": "m", "dtype": "float32"}, "n"],
    "train": {"a": None, "both": {"a": {"limit": 4, "dev_docs": 2}, "b": {"weight": 2.0, "train_docs": "test[0:9]"}}},
    "evaluate": {"a": {"docs": "0:6", "seeds": [0]}, "b": {"limit": 7}, "c": None},
    "layers": ["all", 8, [8, 16], "1-"],
    "seeds": [0, 1],
    "recipe": {"name": "original", "epochs": 2, "lr": 0.05, "temperature": 1.0, "batch_size": 4},
    "include_path": ["tasks"],
    "num_fewshot": 2,
    "split_seed": 3,
}
PLAN_TEXT = yaml.safe_dump(PLAN)
YAML_PIECES = [
    "&a ",
    "*a",
    "<<: *a",
    "!!binary x",
    "!!int x",
    "!!float x",
    "!!timestamp x",
    "!!set {a}",
    "!!python/object:x",
]
YAML_PIECES += [
    "2024-01-01",
    "2024-13-45",
    "4:50",
    ".inf",
    ".nan",
    "0x" + "f" * 3000,
    "9" * 5000,
    "1_000",
    "yes",
    "? ",
    ": ",
]
YAML_PIECES += [
    "- ",
    "\n",
    "\t",
    "[",
    "]",
    "{",
    "}",
    "'",
    '"',
    "#",
    "|\n",
    ">",
    "%",
    "@",
    "\x00",
    "\x1b",
    "\u0085",
    "[" * 300,
]
MANY = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{','.join(['*' + before] * 9)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
HARD = [MANY + "layers: *i", MERGED + "models: [*i]", "layers: &a [*a]", "seeds: [" + "1," * 400_000 + "]", "x" * 2**21]
HARD += [
    "a: " + "[" * 50_000,
    "? " * 3000,
    "- " * 3000,
    "&a " * 3000,
    "a: 1\na: 2",
    "models: [m]\nmodels: [n]",
    "\ufeff",
    "--- a\n--- b",
]


def test_plans(tmp_path: Path) -> None:
    rng = random.Random(7)
    path = tmp_path / "plan.yaml"
    values = [
        *STRANGE,
        b"x",
        {1, 2},
        (1, 2),
        {5: 1},
        {None: 1},
        {True: 1},
        10**5000,
        range(3),
        [[[1]]],
        "4:50",
        "0:5",
        "x[0:",
    ]
    for number in range(INPUTS):
        plan = PLAN
        for _ in range(rng.randrange(1, 4)):
            plan = mutated(plan, rng)
        if number % 2 and isinstance(plan, dict):
            with watched(tmp_path, plan):
                Plan.of({**plan, rng.choice(list(PLAN)): rng.choice(values)})
        text = json.dumps(plan, ensure_ascii=False) if number % 4 else PLAN_TEXT
        for _ in range(rng.choice([0, 1, 4])):
            place = rng.randrange(len(text) + 1)
            text = text[:place] + rng.choice(YAML_PIECES) + text[place + rng.choice([0, 1, 9]) :]
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with watched(tmp_path, text):
            read(path)


PAIR = {
    "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}],
    "chosen": [{"role": "assistant", "content": "A cat."}],
    "rejected": [{"role": "assistant", "content": "Well, a cat."}],
}
PAIR_PIECES = [
    '"',
    ",",
    "\n",
    "\r",
    "\x00",
    "{",
    "}",
    "[",
    "]",
    "\\ud800",
    "\u2028",
    "\ufeff",
    "prompt",
    "NaN",
    "'",
    "\ud800",
]


def test_pair_files(tmp_path: Path) -> None:
    rng = random.Random(8)
    text = {"prompt": "It is", "chosen": " a cat.", "rejected": " a dog."}
    table = 'prompt,chosen,rejected\n"It, is", a cat, a dog\nIt is, a cat, a dog\n'
    for number in range(INPUTS):
        row: Any = [PAIR, text, {"prompt": "a", "completion": "b"}][number % 3]
        for _ in range(rng.randrange(0, 4)):
            row = mutated(row, rng)
        with watched(tmp_path, row):
            used_pairs(read_pairs([row]))
        path = tmp_path / ("a.jsonl" if number % 2 else "a.csv")
        content = json.dumps(row) + "\n" if number % 2 else table
        for _ in range(rng.choice([0, 1, 4])):
            place = rng.randrange(len(content) + 1)
            content = content[:place] + rng.choice(PAIR_PIECES) + content[place + rng.choice([0, 1, 9]) :]
        path.write_bytes(content.encode("utf-8", "surrogatepass"))
        with watched(tmp_path, content):
            try:
                used_pairs(read_pairs(path))
            except AftError as error:
                assert str(error).startswith(f"{path}: "), str(error)
                raise


def used_pairs(found: PairSet) -> None:
    """What is made of pairs before a model reads them."""
    assert questions(found.pairs) and found.version
    for pair in found.pairs:
        assert all(text.strip() for text in pair.texts)
        "".join([pair.asked, *pair.texts]).encode()


@pytest.mark.parametrize("text", HARD, ids=range(len(HARD)))
def test_plans_that_explode(text: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with watched(tmp_path, text[:200]), pytest.raises(AftError, match=r"plan\.yaml: "):
        Plan.read(path)


def read(path: Path) -> Plan:
    """The plan of a file, whose errors name the file."""
    try:
        return Plan.read(path)
    except AftError as error:
        assert str(error).startswith(f"{path}: "), str(error)
        raise


def test_the_watch_sees_what_goes_wrong(tmp_path: Path) -> None:
    def fails(work: Callable[[], object]) -> None:
        with pytest.raises((pytest.fail.Exception, AssertionError)), watched(tmp_path):
            work()

    fails(lambda: int("x"))
    fails(lambda: (tmp_path / "stray").write_text(""))
    with watched(tmp_path):
        raise AftError("one\nline")
