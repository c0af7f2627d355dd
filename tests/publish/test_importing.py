"""Other tools' files as boosters: round trips, what is refused, and what a model is asked."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_cases import WIDTH, gguf_model
from publish_cases import BASE, booster
from safetensors.torch import save_file

from aft_harness.boosters.booster import Booster
from aft_harness.errors import BoosterError
from aft_harness.harness.model import SteeredHFLM
from aft_harness.publish.export.registry import export
from aft_harness.publish.imports.importing import import_booster


def control_vector(path: Path, tensors: dict[str, np.ndarray], architecture: str = "controlvector") -> Path:
    """Writes a control vector as repeng does, by the gguf package."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("controlvector.model_hint", "mistral")
    writer.add_uint32("controlvector.layer_count", len(tensors))
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def steered(path: Path, **changes: Any) -> Path:
    """Writes a file of lm-eval's `steered` with one entry, some of whose values are others."""
    hookpoint = changes.pop("hookpoint", "layers.2")
    entry = {
        "steering_vector": torch.arange(4.0),
        "steering_coefficient": 1.0,
        "action": "add",
        "bias": None,
        "head_index": None,
    }
    torch.save({hookpoint: {**entry, **changes}}, path)
    return path


def adapter(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    """Writes the two files of a PEFT adapter."""
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "BEFT", **config}))
    return folder


LINEAR = "base_model.model.model.layers.1.mlp.down_proj"


@pytest.mark.parametrize(
    ("target", "suffix", "layers"), [("gguf", "gguf", (1, 3)), ("hotwire", "pt", (0, 3)), ("lm-eval", "pt", (0, 3))]
)
def test_what_was_exported_comes_back(tmp_path: Path, target: str, suffix: str, layers: tuple[int, ...]) -> None:
    made = booster(*layers)
    path = export(target, made, tmp_path / f"v.{suffix}").path
    path.rename(other := tmp_path / "no-suffix")  # which format it is, the content says
    found = import_booster(other)
    assert found.sha256 == made.sha256
    recorded = made.provenance.base_model if target != "lm-eval" else None  # whose files have no place for it
    assert found.provenance.base_model == recorded and found.provenance.method == "imported"
    assert found.provenance.imported is not None and len(found.provenance.imported.sha256) == 64
    found.save(tmp_path / "b.safetensors")
    read = Booster.load(tmp_path / "b.safetensors")
    assert read.provenance == found.provenance and str(tmp_path) not in json.dumps(read.provenance.to_json())


def test_a_layer_of_zeros_comes_back(tmp_path: Path) -> None:
    made = Booster.static({1: torch.zeros(4), 2: torch.ones(4)}, {"base_model": {**BASE, "hidden_size": 4}})
    for target, suffix in (("gguf", "gguf"), ("hotwire", "pt")):
        assert import_booster(export(target, made, tmp_path / f"v.{suffix}").path).sha256 == made.sha256


def test_control_vectors_of_repeng(tmp_path: Path) -> None:
    values = np.linspace(-1, 1, 4, dtype=np.float32)
    found = import_booster(control_vector(tmp_path / "v", {"direction.2": values, "direction.10": 2 * values}))
    assert found.sha256 == Booster.static({2: torch.tensor(values), 10: torch.tensor(2 * values)}).sha256
    assert found.provenance.base_model is None
    half = import_booster(control_vector(tmp_path / "h", {"direction.2": values.astype(np.float16)}))
    assert half.sha256 == Booster.static({2: torch.tensor(values.astype(np.float16))}).sha256


def test_files_of_lm_evals_steered(tmp_path: Path) -> None:
    expected = Booster.static({2: torch.arange(4.0)}).sha256
    for hookpoint in ("layers.2", "model.layers.2", "gpt_neox.layers.2", "transformer.h.2", "h.2"):
        assert import_booster(steered(tmp_path / "s.pt", hookpoint=hookpoint)).sha256 == expected
    doubled = import_booster(steered(tmp_path / "s.pt", steering_coefficient=2))
    assert doubled.sha256 == Booster.static({2: 2 * torch.arange(4.0)}).sha256


def test_a_plain_matrix(tmp_path: Path) -> None:
    matrix = torch.zeros(4, 8)
    matrix[3] = 1
    torch.save(matrix.to(torch.bfloat16), tmp_path / "m.pt")
    assert import_booster(tmp_path / "m.pt").sha256 == Booster.static({3: torch.ones(8)}).sha256


def test_adapters_need_a_model_that_says_what_a_bias_does(tmp_path: Path, tiny_checkpoint: Callable[..., Path]) -> None:
    vector = torch.linspace(-1, 1, WIDTH)
    beft = adapter(tmp_path / "beft", {f"{LINEAR}.beft_bias": vector[None]})
    with pytest.raises(BoosterError, match=r"beft: is a PEFT BEFT adapter, .*name the model \(--model\)"):
        import_booster(beft)
    model = SteeredHFLM(str(tiny_checkpoint("llama")), dtype="float32")
    expected = Booster.static({1: vector})
    found = import_booster(beft, model)
    assert found.sha256 == expected.sha256 and found.provenance.base_model == model.base_model
    parts = {"lora_A.weight": torch.zeros(1, 64), "lora_B.weight": torch.ones(WIDTH, 1), "lora_B.bias": vector}
    named = {f"{LINEAR}.{part}": tensor for part, tensor in parts.items()}
    lora = adapter(tmp_path / "lora", named, peft_type="LORA", r=4, lora_alpha=8, use_rslora=False)
    assert import_booster(lora, model).sha256 == expected.scaled(2.0).sha256
    other = SteeredHFLM(str(tiny_checkpoint("gemma3_text")), dtype="float32")
    with pytest.raises(BoosterError, match=r"does not change the output of layer 1 by itself"):
        import_booster(beft, other)
    wrong = adapter(tmp_path / "wrong", {f"{LINEAR.replace('down_proj', 'fc2')}.beft_bias": vector})
    with pytest.raises(BoosterError, match=r"layer 1 of the model has no mlp\.fc2"):
        import_booster(wrong, model)
    with pytest.raises(BoosterError, match="hidden size of 8"):
        import_booster(adapter(tmp_path / "narrow", {f"{LINEAR}.beft_bias": torch.ones(8)}), model)


def test_an_adapter_of_peft_itself(tmp_path: Path, tiny_checkpoint: Callable[..., Path]) -> None:
    peft = pytest.importorskip("peft")
    if not hasattr(peft, "BeftConfig"):
        pytest.skip("needs peft 0.20")
    model = SteeredHFLM(str(tiny_checkpoint("llama")), dtype="float32")
    from transformers import AutoModelForCausalLM

    wrapped = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_checkpoint("llama")),
        peft.BeftConfig(target_modules=["down_proj"], task_type="CAUSAL_LM"),
    )
    for name, parameter in wrapped.named_parameters():
        if "beft_bias" in name:
            torch.nn.init.normal_(parameter)
    wrapped.save_pretrained(tmp_path / "adapter")
    tokens = torch.tensor([[5, 6, 7, 8, 9]])
    found = import_booster(tmp_path / "adapter", model)
    with torch.no_grad():
        expected = wrapped(tokens).logits
        with found.applied_to(model.model):
            assert torch.allclose(model.model(tokens).logits, expected, atol=1e-5)


REFUSED_VECTORS: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "zero": ({"direction.0": np.ones(4, np.float32)}, "has|with a direction.0, which llama.cpp refuses too"),
    "name": ({"blk.1.x": np.ones(4, np.float32)}, "with an unknown tensor: blk.1.x"),
    "width": (
        {"direction.1": np.ones(4, np.float32), "direction.2": np.ones(5, np.float32)},
        "differ in width: 4 and 5",
    ),
    "shape": ({"direction.1": np.ones((2, 2), np.float32)}, "has the shape"),
    "nan": ({"direction.1": np.full(4, np.nan, np.float32)}, "holds NaN"),
    "integers": ({"direction.1": np.ones(4, np.int32)}, "is quantised"),
    "deep": ({"direction.100000": np.ones(4, np.float32)}, "out of range"),
    "none": ({}, "without a vector"),
}


@pytest.mark.parametrize("name", REFUSED_VECTORS)
def test_control_vectors_that_are_none(tmp_path: Path, name: str) -> None:
    tensors, reason = REFUSED_VECTORS[name]
    with pytest.raises(BoosterError, match=rf"^{tmp_path}/v: .*({reason})"):
        import_booster(control_vector(tmp_path / "v", tensors))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"action": "clamp"}, "action 'clamp' is not 'add'"),
        ({"head_index": 0}, "one attention head"),
        ({"bias": torch.ones(4)}, "has a bias"),
        ({"hookpoint": "layers.2.mlp"}, "steers layers.2.mlp; a booster changes the output of decoder layers only"),
        ({"steering_coefficient": float("nan")}, "not a finite number"),
        ({"steering_coefficient": 1e39}, "beyond float32"),
        ({"steering_coefficient": 10**40}, "beyond float32"),
        ({"steering_coefficient": 10**400}, "not a finite number"),
        ({"steering_vector": torch.ones(2, 2)}, "has the shape"),
        ({"steering_vector": torch.ones(4, dtype=torch.int64)}, "holds int64"),
        ({"steering_vector": torch.ones(1).expand(10**9)}, "has the shape"),
        ({"steering_vector": torch.ones(4).to_sparse()}, "not an ordinary tensor"),
        ({"steering_vector": None}, "is not a tensor"),
    ],
)
def test_steering_that_is_no_booster(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(BoosterError, match=reason):
        import_booster(steered(tmp_path / "s.pt", **changes))


def test_nothing_in_a_pickle_runs_and_no_archive_grows(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"layers.1": {"steering_vector": Evil()}}, tmp_path / "evil.pt")
    with pytest.raises(BoosterError, match="cannot be read as a file of tensors"):
        import_booster(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"\0" * 2**20)
    with pytest.raises(BoosterError, match="compressed archive"):
        import_booster(tmp_path / "bomb.pt")


@pytest.mark.parametrize(
    ("tensors", "config", "reason"),
    [
        ({f"{LINEAR}.beft_bias": torch.ones(4)}, {"peft_type": "IA3"}, "of type IA3; only biases can be a booster"),
        ({"base_model.model.model.layers.1.self_attn.v_proj.beft_bias": torch.ones(4)}, {}, "changes .*v_proj"),
        ({f"{LINEAR}.beft_bias": torch.ones(4)}, {"modules_to_save": ["lm_head"]}, "replaces whole modules"),
        ({f"{LINEAR}.lora_A.weight": torch.ones(1, 4)}, {"peft_type": "LORA"}, "without lora_bias changes weights"),
        (
            {f"{LINEAR}.{part}": torch.ones(4, 1) for part in ("lora_A.weight", "lora_B.weight", "lora_B.bias")},
            {"peft_type": "LORA", "r": 1, "lora_alpha": 1},
            "its matrices are not zero",
        ),
        (
            {f"{LINEAR}.lora_B.bias": torch.ones(4)},
            {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "alpha_pattern": {"x": 2}},
            "differ by module",
        ),
        ({f"{LINEAR}.lora_B.bias": torch.ones(4)}, {"peft_type": "LORA", "r": "1"}, "must be numbers"),
        ({f"{LINEAR}.beft_bias": torch.ones(2, 2)}, {}, "has the shape"),
        (
            {f"{LINEAR}.beft_bias": torch.ones(4), f"{LINEAR.replace('mlp', 'moe')}.beft_bias": torch.ones(4)},
            {},
            "changes two modules of layer 1",
        ),
    ],
)
def test_adapters_that_are_no_booster(
    tmp_path: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any], reason: str
) -> None:
    with pytest.raises(BoosterError, match=reason):
        import_booster(adapter(tmp_path / "a", tensors, **config))


def test_files_of_no_known_format(tmp_path: Path) -> None:
    booster(1).save(tmp_path / "b.safetensors")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "folder").mkdir()
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "adapter_config.json").write_text("{}")
    for name, reason in (
        ("nowhere", "no such file"),
        ("b.safetensors", "a booster needs no import"),
        ("text", "is of no format that can be imported"),
        ("folder", r"is a folder without adapter_config\.json"),
        ("pickled", r"without adapter_model\.safetensors; adapters that are pickles are not read"),
        ("m.gguf", "of architecture llama, not a control vector"),
    ):
        gguf_model(tmp_path / "m.gguf")
        with pytest.raises(BoosterError, match=rf"{name}: .*{reason}|{name}: {reason}"):
            import_booster(tmp_path / name)
