"""Whatever is read from outside ends in a value or in one line that says what is wrong: never in another exception.

Each fuzzer draws its inputs from a seed. `make verify-robustness`, which sets AFT_FUZZ, draws more than the normal run.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import save as safetensors_bytes

from aft_harness.boosters import file_format, references
from aft_harness.boosters.booster import Booster, canonical
from aft_harness.boosters.file_format import sidecar
from aft_harness.boosters.layers import Layers
from aft_harness.boosters.mixing import mix
from aft_harness.boosters.model_identity import ModelIdentity
from aft_harness.boosters.provenance import Provenance
from aft_harness.boosters.variant import Variant, VariantRecord
from aft_harness.cli import main
from aft_harness.errors import AftError
from aft_harness.publish.export.gguf import control_vector
from aft_harness.publish.export.origin import MODEL
from aft_harness.publish.export.registry import export
from aft_harness.publish.export.target import RECORD
from aft_harness.publish.gguf_file import TensorEntry, metadata_entry, tensor_entry, written_header
from aft_harness.publish.imports import peft_folder
from aft_harness.publish.imports.importing import import_booster
from aft_harness.slices import Slice, SplitSlice
from aft_harness.studies.plan import Plan

INPUTS = int(os.environ.get("AFT_FUZZ", "2000"))
"""Of each fuzzer."""

SECONDS = 10
"""For one input, at most."""

pytestmark = pytest.mark.timeout(300 + INPUTS // 20)


@contextmanager
def watched(folder: Path, text: object = "") -> Iterator[None]:
    """Passes over errors of one line; fails for other exceptions, for an input that hangs, and for files that changed.

    Args:
        folder: What must stay as it is.
        text: The input, for the report.
    """

    def late(*_: object) -> None:
        pytest.fail(f"more than {SECONDS} seconds for the input {text!r:.1000}")  # which no code under test catches

    before = _contents(folder)
    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    except AftError as error:
        message = str(error)
        assert message and message.isprintable() and len(message) <= 2010, (text, message)
    except Exception as error:
        pytest.fail(f"{type(error).__name__}: {str(error)[:300]!r} of the input {text!r:.1000}")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    assert _contents(folder) == before, text


def _contents(folder: Path) -> list[tuple[str, int, int]]:
    found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in os.scandir(folder)]
    return sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


STRANGE: list[Any] = [
    *(None, True, False, 0, 1, -1, 5, 2**31, 2**63, -(2**70), 10**25, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *(
        "",
        " ",
        "x",
        "1",
        "0.5",
        "nan",
        "\n",
        "\x1b[2J",
        "\u202e",
        "\x00",
        "\ud800",
        "sha256  forged\nsha256  x",
        "x" * 5000,
    ),
    *([], [[]], [None], [1, 2], ["a"], {}, {"a": 1}, {"": None}, {"a": {"b": [{}]}}, "2025-01-01", "0" * 16),
]
"""Values that a field may turn up with."""


def deep(rng: random.Random) -> Any:
    """A value nested as deep as readers may break at."""
    value: Any = 0
    for _ in range(rng.choice([3, 50, 127, 200, 400])):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def mutated(value: Any, rng: random.Random) -> Any:
    """A JSON value with one part replaced, removed or added."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        changed = dict(value)
        action = rng.random()
        if action < 0.1:
            del changed[key]
        elif action < 0.2:
            changed[rng.choice(["more", "hashes", "unlisted", "to_json", "0", "\n", key.upper()])] = strange(rng)
        else:
            changed[key] = mutated(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.85:
        index = rng.randrange(len(value))
        replaced = rng.random() < 0.9
        return [*value[:index], *([mutated(value[index], rng)] if replaced else value[index:] * 2), *value[index + 1 :]]
    return strange(rng)


def strange(rng: random.Random) -> Any:
    return deep(rng) if rng.random() < 0.03 else rng.choice(STRANGE)


def junk(rng: random.Random, pieces: list[str], most: int = 12) -> str:
    return "".join(rng.choice(pieces) for _ in range(rng.randrange(most)))


PROVENANCE: dict[str, Any] = {
    "base_model": {"name": "m", "revision": None, "fingerprint": "f" * 64, "layers": 4, "hidden_size": 4},
    "method": "aft",
    "objective": "both",
    "choice_norm": "none",
    "tasks": [{"task": "a", "version": "1", "split": "train[0:9]", "n_train": 9, "num_fewshot": 0, "weight": 1.0}],
    "prompting": {"num_fewshot": None, "apply_chat_template": False},
    "hyperparameters": {"lr": 0.05, "layers": [0, 1]},
    "training_sha256": "a" * 64,
    "seed": 3,
    "dtype": "float32",
    "epoch_losses": [1.5, 0.25],
    "measured_on": "development",
    "before": {"loss": 1.5, "accuracy": 0.5, "n": 10, "measure": "training objective"},
    "after": {"loss": 0.5, "accuracy": None, "n": 10},
    "layer_sweep": {"1": {"loss": 0.5, "n": 10}},
    "raw_norm": 12.5,
    "questions": ["Why?"],
    "answered_correctly": 7,
    "parts": [{"booster_sha256": "b" * 64, "strength": -0.5, "provenance": {"method": "aft"}}],
    "start": {"booster_sha256": "c" * 64, "provenance": {"seed": 1}},
    "versions": {"torch": "2.9"},
    "date": "2025-11-14T00:00:00+00:00",
    "licence": "MIT",
    "documents": {"count": 2, "normalisation": 2, "unlisted": 0, "hashes": ["0" * 16, "1" * 16]},
}
BASE = ModelIdentity(name="m", fingerprint="f" * 64, layers=4, hidden_size=4)


def used(booster: Booster) -> None:
    """What commands do with a booster that loaded: show it, show it as JSON, mix and save it, record it.

    Nothing of this may fail, not even in one line.
    """
    try:
        _used(booster)
    except AftError as error:
        pytest.fail(f"loaded, but {error}")


_TABLES = random.Random(8)


def _used(booster: Booster) -> None:
    from aft_harness.cli.boosters import _described, _json
    from aft_harness.results.table import COLUMNS, to_frame

    variant = Variant("a.safetensors:2", booster, 2.0)
    json.loads(_json(variant), parse_constant=pytest.fail).keys()
    assert all(isinstance(name, str) and isinstance(value, str) for name, value in _described(variant))
    mixed = mix([(booster, 0.25), (booster, 0.25)])
    canonical(mixed.provenance.to_json()).encode()
    record = VariantRecord.of(variant, BASE, "cpu", "1").to_json()
    json.dumps(record, allow_nan=False)
    if _TABLES.random() < 0.9:  # they are slow
        return
    columns = {"trained_n": record["trained_n"], "seed": record["seed"], "method": record["method"]}
    to_frame([{**dict.fromkeys(COLUMNS), **columns}])


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


def damaged(plain: bytes, rng: random.Random, first: int) -> bytes:
    """Bytes of a file with some of them changed, most among the first, and perhaps cut or longer."""
    data = bytearray(plain)
    for _ in range(rng.choice([1, 1, 2, 4, 32])):
        place = rng.randrange(min(first, len(data)) if rng.random() < 0.7 else len(data))
        width = rng.choice([1, 1, 1, 4, 8])
        value = rng.choice([0, 1, 255, 2**31, 2**32 - 1, 2**40, 2**63, rng.randrange(2**64)]) % 256**width
        data[place : place + width] = value.to_bytes(width, "little")
    cut = rng.choice([len(data), len(data), len(data), rng.randrange(len(data))])
    return bytes(data[:cut]) + rng.choice([b"", b"", b"", b"\0" * 40])


FOREIGN = ("gguf", "lm-eval", "matrix")


def foreign(kind: str) -> bytes:
    """A good file of another tool."""
    vector = torch.ones(4)
    if kind == "gguf":
        return control_vector({1: vector, 2: vector}, 4, "llama", {"aft.strength": 1.0, "aft.origin": "{}"})
    entry = {"steering_vector": vector, "steering_coefficient": 1.0, "action": "add", "bias": None, "head_index": None}
    buffer = io.BytesIO()
    torch.save({"layers.1": entry} if kind == "lm-eval" else {"vectors": vector.expand(2, 4), "aft": "{}"}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", FOREIGN)
def test_files_of_other_tools(tmp_path: Path, kind: str) -> None:
    rng = random.Random(9)
    path, plain = tmp_path / "foreign", foreign(kind)
    first = len(plain) if kind == "gguf" else 700  # of an archive, the pickle comes first
    path.write_bytes(plain)
    import_booster(path)
    for _ in range(INPUTS):
        path.write_bytes(repacked(plain, rng) if kind != "gguf" and rng.random() < 0.5 else damaged(plain, rng, first))
        with watched(tmp_path, path.read_bytes()[:300]):
            used(import_booster(path))


def repacked(plain: bytes, rng: random.Random) -> bytes:
    """A good archive of torch's with a damaged part, which its checksum does not give away."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(plain)) as archive, zipfile.ZipFile(buffer, "w") as other:
        names = archive.namelist()
        broken = rng.choice([name for name in names if name.endswith(".pkl")] if rng.random() < 0.8 else names)
        for name in names:
            data = archive.read(name)
            if name != broken:
                other.writestr(name, data)
            elif rng.random() < 0.9:
                other.writestr(name, damaged(data or b"x", rng, 400))
    return buffer.getvalue()


def test_steering_files_of_strange_values(tmp_path: Path) -> None:
    rng = random.Random(10)
    path = tmp_path / "s.pt"
    tensors: list[Any] = [torch.ones(4), torch.ones(0), torch.ones(2, 4), torch.ones(4, dtype=torch.complex64)]
    tensors += [torch.full((4,), float("nan")), torch.ones(4).half(), torch.ones((), dtype=torch.int8), torch.eye(4)]
    tensors += [torch.ones(1).expand(10**9), torch.eye(3).to_sparse(), torch.nn.Parameter(torch.ones(4)), "x", None]
    names = [
        "layers.1",
        "h.2",
        "layers.99999999999",
        "layers.-1",
        "model.layers.1",
        "\x1b[2J",
        "",
        5,
        None,
        "layers.\u0663",
    ]
    for _ in range(INPUTS):
        entry: dict[Any, Any] = {"steering_vector": rng.choice(tensors), "action": "add", "steering_coefficient": 2.0}
        for _ in range(rng.randrange(3)):
            key = rng.choice(["action", "bias", "head_index", "steering_coefficient", "steering_vector", "more"])
            entry[key] = rng.choice([*STRANGE, *tensors])
        content: Any = {rng.choice(names): entry, **({rng.choice(names): entry} if rng.random() < 0.3 else {})}
        content = rng.choice([content, content, content, rng.choice(tensors), [content], {"a": rng.choice(tensors)}])
        torch.save(content, path)
        with watched(tmp_path, content if isinstance(content, dict) else ""):
            used(import_booster(path))


ADAPTER: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": False, "target_modules": ["x"]}


def test_adapters(tmp_path: Path) -> None:
    rng = random.Random(11)
    name = "base_model.model.model.layers.1.mlp.down_proj"
    tensors = {"lora_A.weight": torch.zeros(2, 4), "lora_B.weight": torch.ones(4, 2), "lora_B.bias": torch.ones(4)}
    good = {f"{name}.{part}": tensor for part, tensor in tensors.items()}
    plain = safetensors_bytes(good)
    weights, config, origin = (tmp_path / each for each in (peft_folder.WEIGHTS, peft_folder.CONFIG, RECORD))
    for number in range(INPUTS):
        if number % 3 == 0:
            weights.write_bytes(damaged(plain, rng, 300))
        else:
            renamed = {
                rng.choice([key, key, key.replace("1", "77777777"), "x", f"{name}.beft_bias"]): value
                for key, value in good.items()
            }
            weights.write_bytes(safetensors_bytes(renamed))
        changed = (
            mutated(ADAPTER, rng) if rng.random() < 0.5 else {**ADAPTER, "peft_type": rng.choice(["LORA", "BEFT"])}
        )
        config.write_text(json.dumps(changed)[: rng.choice([None, None, 20])])
        origin.write_text(json.dumps(mutated({MODEL: PROVENANCE["base_model"], "layers": [1]}, rng)))
        with watched(tmp_path, (changed, weights.read_bytes()[:200])):
            used(import_booster(tmp_path))


def test_models_of_llama_cpp(tmp_path: Path) -> None:
    rng = random.Random(12)
    (tmp_path / "work").mkdir()
    (tmp_path / "other").mkdir()
    path, output = tmp_path / "work" / "m.gguf", tmp_path / "work" / "o.gguf"
    texts = {"general.architecture": "llama", "general.name": "m"}
    numbers = {"llama.block_count": 4, "llama.embedding_length": 4, "general.alignment": 32}
    entries = [metadata_entry(key, value) for key, value in {**texts, **numbers}.items()]
    tensors = [TensorEntry(f"blk.{layer}.ffn_down.weight", (8, 4), 0, 128 * layer) for layer in range(4)]
    header = written_header(b"".join(entries), len(entries), b"".join(map(tensor_entry, tensors)), len(tensors))
    plain = header + b"\1" * 512
    booster = Booster.static({1: torch.ones(4)})
    for _ in range(INPUTS):
        path.write_bytes(damaged(plain, rng, len(header)))
        with watched(tmp_path / "other", path.read_bytes()[:300]):
            export("gguf-model", booster, output, model=path, overwrite=True)
            assert output.stat().st_size < 10 * len(plain)
        assert set(os.listdir(path.parent)) <= {"m.gguf", "o.gguf"}


def test_the_watch_sees_what_goes_wrong(tmp_path: Path) -> None:
    def fails(work: Callable[[], object]) -> None:
        with pytest.raises((pytest.fail.Exception, AssertionError)), watched(tmp_path):
            work()

    fails(lambda: int("x"))
    fails(lambda: (tmp_path / "stray").write_text(""))
    with watched(tmp_path):
        raise AftError("one\nline")
