"""Files of other tools that are damaged or strange end in a booster or in one line: see `test_fuzz.py`."""

from __future__ import annotations

import io
import json
import os
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz_cases import INPUTS, PROVENANCE, STRANGE, mutated, used, watched
from safetensors.torch import save as safetensors_bytes

from aft_harness.boosters.booster import Booster
from aft_harness.engine.gguf_file import TensorEntry, metadata_entry, tensor_entry, written_header
from aft_harness.publish.export.gguf import control_vector
from aft_harness.publish.export.origin import MODEL
from aft_harness.publish.export.registry import export
from aft_harness.publish.export.target import RECORD
from aft_harness.publish.imports import peft_folder
from aft_harness.publish.imports.importing import import_booster

pytestmark = pytest.mark.timeout(300 + INPUTS // 20)


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
