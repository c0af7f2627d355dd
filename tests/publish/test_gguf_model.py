"""A GGUF model with a booster in it: all else is as it was, byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_cases import WIDTH, gguf_model
from publish_cases import booster, vectors_of

from aft_harness.boosters.booster import Booster
from aft_harness.errors import ExportError, FileError
from aft_harness.publish.export.registry import export


def contents(path: Path) -> tuple[dict[str, Any], dict[str, tuple[Any, bytes]]]:
    """All fields, as type and raw bytes, and all tensors of a GGUF file."""
    reader = gguf.GGUFReader(path)
    fields = {
        name: (tuple(field.types), b"".join(part.tobytes() for part in field.parts))
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    tensors = {each.name: (each.tensor_type, each.data.tobytes()) for each in reader.tensors}
    return fields, tensors


def floats(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype="<f4")


@pytest.mark.parametrize("alignment", [32, 64])
def test_only_the_biases_are_new(tmp_path: Path, alignment: int) -> None:
    model = gguf_model(tmp_path / "m.gguf", alignment=alignment)
    made = booster(0, 3)
    before = model.read_bytes()
    done = export("gguf-model", made, tmp_path / "o.gguf", model=model)
    assert done.path == tmp_path / "o.gguf" and model.read_bytes() == before
    (old_fields, old_tensors), (fields, tensors) = contents(model), contents(done.path)
    assert {name: fields[name] for name in old_fields} == old_fields
    assert {name: tensors[name] for name in old_tensors} == old_tensors
    assert set(fields) - set(old_fields) == {"aft.booster_sha256", "aft.strength", "aft.base_model", "aft.origin"}
    added = {name: floats(data) for name, (kind, data) in tensors.items() if name not in old_tensors and kind == 0}
    vectors = vectors_of(made)
    assert set(added) == {"blk.0.ffn_down.bias", "blk.3.ffn_down.bias"}
    assert all((added[f"blk.{layer}.ffn_down.bias"] == vectors[layer].numpy()).all() for layer in vectors)
    offsets = [each.data_offset for each in gguf.GGUFReader(done.path).tensors]
    assert all(offset % alignment == 0 for offset in offsets) and offsets == sorted(offsets)
    assert (done.path.stat().st_size - gguf.GGUFReader(done.path).data_offset) % alignment == 0


def test_a_bias_that_is_there_is_added_to(tmp_path: Path) -> None:
    bias = np.linspace(-1, 1, WIDTH, dtype=np.float32)
    model = gguf_model(tmp_path / "m.gguf", "phi2", biases=dict.fromkeys(range(4), bias))
    made = booster(1)
    export("gguf-model", made, tmp_path / "o.gguf", model=model, scale=0.5)
    old, new = contents(model)[1], contents(tmp_path / "o.gguf")[1]
    assert set(old) == set(new)
    changed = {name for name in old if old[name] != new[name]}
    assert changed == {"blk.1.ffn_down.bias"}
    assert (floats(new["blk.1.ffn_down.bias"][1]) == bias + 0.5 * vectors_of(made)[1].numpy()).all()
    model = gguf_model(tmp_path / "half.gguf", "phi2", biases={1: bias.astype(np.float16)})
    with pytest.raises(ExportError, match=r"blk\.1\.ffn_down\.bias is not a vector of float32"):
        export("gguf-model", made, tmp_path / "p.gguf", model=model)


def test_granite_scales_the_bias(tmp_path: Path) -> None:
    model = gguf_model(tmp_path / "m.gguf", "granite", granite__residual_scale=0.25)
    made = booster(2)
    export("gguf-model", made, tmp_path / "o.gguf", model=model)
    _, data = contents(tmp_path / "o.gguf")[1]["blk.2.ffn_down.bias"]
    assert (floats(data) == 4 * vectors_of(made)[2].numpy()).all()
    with pytest.raises(ExportError, match=r"lacks granite\.residual_scale"):
        export("gguf-model", made, tmp_path / "p.gguf", model=gguf_model(tmp_path / "n.gguf", "granite"))


@pytest.mark.parametrize(
    ("model", "made", "reason"),
    [
        ({"architecture": "qwen2"}, booster(1), "gives the MLP of Qwen 2 no bias; use the target gguf instead"),
        ({"architecture": "gemma3"}, booster(1), "Gemma 3 normalises the output of the MLP"),
        ({"architecture": "never-heard"}, booster(1), "of the architecture never-heard it is not known"),
        ({"experts": True}, booster(1), "layer 1 is a mixture of experts"),
        ({"split__count": 3}, booster(1), "is one of 3 parts; join them first: llama-gguf-split --merge"),
        ({"aft__booster_sha256": "ab" * 32}, booster(1), "holds the booster abababababab already"),
        ({}, booster(1, width=16, base=None), "has a hidden size of 32, the booster one of 16"),
        ({}, booster(4, base=None), "has 4 layers; the booster changes layer 4"),
        ({}, booster(1, base={"name": "x", "layers": 5}), "has 4 layers; the booster is for a model of 5"),
        ({"llama__nextn_predict_layers": 1}, booster(3, base=None), "has 3 layers; the booster changes layer 3"),
    ],
)
def test_what_cannot_be_said_is_refused(tmp_path: Path, model: dict[str, Any], made: Booster, reason: str) -> None:
    path = gguf_model(tmp_path / "m.gguf", **model)
    with pytest.raises(ExportError, match=reason):
        export("gguf-model", made, tmp_path / "o.gguf", model=path)
    assert [each.name for each in tmp_path.iterdir()] == ["m.gguf"]


def test_files_that_are_no_whole_model_are_refused(tmp_path: Path) -> None:
    model = gguf_model(tmp_path / "m.gguf")
    cut, text, empty = tmp_path / "cut.gguf", tmp_path / "text.gguf", tmp_path / "empty.gguf"
    cut.write_bytes(model.read_bytes()[:-100])
    text.write_text("hello")
    empty.touch()
    for path, reason in (
        (cut, r"cut\.gguf: is cut short"),
        (text, r"text\.gguf: is not a GGUF file"),
        (empty, r"empty\.gguf: is empty"),
        (tmp_path / "none.gguf", r"none\.gguf: no such GGUF file"),
        (tmp_path, "not a regular file"),
    ):
        with pytest.raises(ExportError, match=reason):
            export("gguf-model", booster(1), tmp_path / "o.gguf", model=path)
    with pytest.raises(ExportError, match="needs the option 'model'"):
        export("gguf-model", booster(1), tmp_path / "o.gguf")
    assert not (tmp_path / "o.gguf").exists()


def test_the_model_itself_is_never_the_output(tmp_path: Path) -> None:
    model = gguf_model(tmp_path / "m.gguf")
    before = model.read_bytes()
    with pytest.raises(ExportError, match="exists; choose another"):
        export("gguf-model", booster(1), model, model=model)
    with pytest.raises(ExportError, match="is the model itself"):
        export("gguf-model", booster(1), model, model=model, overwrite=True)
    assert model.read_bytes() == before


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aft_harness.publish.export import gguf_model as target

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    model = gguf_model(tmp_path / "m.gguf")
    shutil.copy(model, tmp_path / "o.gguf")
    monkeypatch.setattr(target, "_copy", full)
    with pytest.raises(FileError, match=r"o\.gguf: cannot be written \(No space left on device\)"):
        export("gguf-model", booster(1), tmp_path / "o.gguf", model=model, overwrite=True)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m.gguf", "o.gguf"]
    assert (tmp_path / "o.gguf").read_bytes() == model.read_bytes()
