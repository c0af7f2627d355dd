"""Control vectors of llama.cpp, as the gguf package reads them."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
from gguf_cases import gguf_model
from publish_cases import BASE, booster, vectors_of

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.injections import ContextualInjection
from aft_harness.boosters.mixing import mix
from aft_harness.errors import AftError, ExportError
from aft_harness.publish.export.registry import export


def test_a_control_vector_is_what_llama_cpp_takes(tmp_path: Path) -> None:
    made = booster(1, 3)
    done = export("gguf", made, tmp_path / "v.gguf", scale=0.5)
    reader = gguf.GGUFReader(done.path)
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.model_hint"].contents() == "llama"
    assert reader.fields["controlvector.layer_count"].contents() == 4
    assert reader.fields["aft.booster_sha256"].contents() == made.sha256
    assert reader.fields["aft.strength"].contents() == 0.5
    origin = json.loads(reader.fields["aft.origin"].contents())
    assert origin["layers"] == [1, 3] and origin["base_model_identity"]["name"] == "m/n"
    found = {each.name: each for each in reader.tensors}
    assert list(found) == ["direction.1", "direction.3"]
    for layer, vector in vectors_of(made).items():
        tensor = found[f"direction.{layer}"]
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32 and list(tensor.shape) == [32]
        assert (tensor.data == 0.5 * vector.numpy()).all()
    assert f"--control-vector {done.path}" in done.use and f"{done.path}:0.5" in done.use


def test_a_mixture_is_one_vector(tmp_path: Path) -> None:
    parts = [(booster(1, 2), 0.5), (booster(2, 3, seed=1), -2.0)]
    export("gguf", parts, tmp_path / "v.gguf")
    found = {each.name: each.data for each in gguf.GGUFReader(tmp_path / "v.gguf").tensors}
    for layer, vector in vectors_of(mix(parts)).items():
        assert (found[f"direction.{layer}"] == vector.numpy()).all()


def test_a_model_file_says_what_the_booster_does_not(tmp_path: Path) -> None:
    made, model = booster(1, base=None), gguf_model(tmp_path / "m.gguf", "qwen2")
    with pytest.raises(ExportError, match="name the model's GGUF file"):
        export("gguf", made, tmp_path / "v.gguf")
    export("gguf", made, tmp_path / "v.gguf", model=model)
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    assert reader.fields["controlvector.model_hint"].contents() == "qwen2"
    with pytest.raises(ExportError, match="the booster one of 16"):
        export("gguf", booster(1, width=16), tmp_path / "w.gguf", model=model)
    with pytest.raises(ExportError, match="layer 4 is out of range"):
        export("gguf", booster(4), tmp_path / "w.gguf")


def test_what_llama_cpp_cannot_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot steer layer 0; write the booster into the model"):
        export("gguf", booster(0, 1), tmp_path / "v.gguf")
    contextual = Booster({1: ContextualInjection.fresh(32, 2, 0)}, booster(1).provenance)
    with pytest.raises(ExportError, match=r"layer 1 of .* has a contextual injection"):
        export("gguf", contextual, tmp_path / "v.gguf")
    with pytest.raises(AftError, match=r"ends in \.gguf"):
        export("gguf", booster(1), tmp_path / "v.bin")
    (tmp_path / "v.gguf").write_text("mine")
    with pytest.raises(ExportError, match="exists; choose another"):
        export("gguf", booster(1), tmp_path / "v.gguf")
    assert (tmp_path / "v.gguf").read_text() == "mine"
    export("gguf", booster(1), tmp_path / "v.gguf", overwrite=True)
    assert (tmp_path / "v.gguf").read_bytes().startswith(b"GGUF") and BASE["layers"] == 4
