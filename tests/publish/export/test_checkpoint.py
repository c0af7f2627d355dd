from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tiny_model
from export_cases import WIDTH, assert_close, booster, checkpoint, hub_cache, loaded, logits, steered
from safetensors.torch import load_file, save, save_file

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.injections import ContextualInjection
from aft_harness.boosters.mixing import mix
from aft_harness.errors import AftError, BoosterError, ExportError, ModelError
from aft_harness.publish.export import overlay
from aft_harness.publish.export.registry import export
from aft_harness.publish.export.target import Exported

NATIVE = ["bloom", "gpt2", "gpt_neox", "gptj", "opt", "phi", "starcoder2"]
SWITCHED = ["ernie4_5_moe", "falcon", "granite", "llama", "mamba"]
AS_LLAMA = ["internlm3", "mistral", "qwen2"]


def exported(base: Path, output: Path, vector: Any = None, **options: Any) -> Exported:
    """An export that is not compared with its base by itself."""
    vector = booster() if vector is None else vector
    return export("checkpoint", vector, output, model=str(base), **{"verify": False, **options})


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("architecture", [*NATIVE, *SWITCHED, *AS_LLAMA])
def test_a_plain_model_says_what_the_steered_base_says(architecture: str, shards: int, tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", architecture, max_shard_size="1GB" if shards == 1 else "40KB")
    assert (len(list(base.glob("*.safetensors"))) > 1) == (shards > 1)
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    done = exported(base, tmp_path / "out")
    assert_close(logits(loaded(tmp_path / "out")), steered(base, booster()))
    assert before == {path.name: path.read_bytes() for path in base.iterdir()}
    form = "native biases" if architecture in NATIVE else "as Llama" if architecture in AS_LLAMA else None
    assert done.record["form"] == form or form is None
    linked = [path.stat().st_nlink > 1 for path in (tmp_path / "out").glob("*.safetensors")]
    assert any(linked) if architecture not in NATIVE else not all(linked)


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("llama", {"tie_word_embeddings": True, "attention_bias": True}),
        ("llama", {"mlp_bias": True}),
        ("llama", {"head_dim": 16}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}}),
        ("mistral", {"sliding_window": 256, "head_dim": 16}),
        ("mistral", {"tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
        ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": False}),
        ("gpt_neox", {"use_parallel_residual": False}),
    ],
)
def test_settings_of_the_base_are_carried_over(architecture: str, settings: Any, tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", architecture, **settings)
    exported(base, tmp_path / "out")
    assert_close(logits(loaded(tmp_path / "out")), steered(base, booster()))


def test_rotary_settings_in_the_old_spelling_are_carried_over(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", "qwen2")
    settings = json.loads((base / "config.json").read_text())
    del settings["rope_parameters"]
    settings |= {"rope_theta": 77.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    (base / "config.json").write_text(json.dumps(settings))
    exported(base, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["rope_theta"] == 77.0 and "rope_parameters" not in written
    assert_close(logits(loaded(tmp_path / "out")), steered(base, booster()))


def test_strengths_and_mixtures(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", "llama")
    booster(1).save(tmp_path / "a.safetensors")
    booster(2, (1, 2)).save(tmp_path / "b.safetensors")
    spec = f"{tmp_path}/a.safetensors:0.5+{tmp_path}/b.safetensors:-1"
    exported(base, tmp_path / "out", spec, scale=2.0)
    expected = steered(base, mix([(booster(1), 1.0), (booster(2, (1, 2)), -2.0)]))
    assert_close(logits(loaded(tmp_path / "out")), expected)


@pytest.mark.parametrize("architecture", ["granite", "llama", "phi"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_biases_have_the_dtype_of_the_weights(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", architecture, dtype)
    exported(base, tmp_path / "out", verify=True)  # which knows the rounding, and allows nothing else
    files = [load_file(path) for path in (tmp_path / "out").glob("*.safetensors")]
    assert {tensor.dtype for file in files for tensor in file.values()} == {dtype}
    close = {"rtol": 0, "atol": 0.3} if dtype == torch.bfloat16 else {"rtol": 0, "atol": 0.03}
    torch.testing.assert_close(logits(loaded(tmp_path / "out")), steered(base, booster()), **close)


def test_a_value_beyond_the_dtype_is_refused(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", "llama", torch.float16)
    with pytest.raises(ExportError, match="layer 2: a value of the vector is too large for the base's float16"):
        exported(base, tmp_path / "out", Booster.static({2: torch.full((WIDTH,), 1e5)}))


@pytest.mark.parametrize(
    ("architecture", "settings", "reason"),
    [
        ("qwen3", {}, "no bias at mlp.down_proj.* do not compute what a Llama does"),
        ("gemma", {}, "no bias at mlp.down_proj"),
        ("phi3", {"pad_token_id": 0}, "no bias at mlp.down_proj"),
        ("mistral", {"sliding_window": 16}, "no attention window, here of 16 tokens"),
        ("gemma2", {}, "no linear layer's bias is added to the decoder layer's output"),
        ("gemma3_text", {}, "no linear layer's bias"),
        ("olmo2", {}, "no linear layer's bias"),
        ("mixtral", {}, "no linear layer's bias"),
        ("opt", {"do_layer_norm_before": False}, "no linear layer's bias"),
    ],
)
def test_what_cannot_be_said_exactly_is_refused(architecture: str, settings: Any, reason: str, tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", architecture, **settings)
    with pytest.raises(ExportError, match=reason):
        exported(base, tmp_path / "out")
    assert os.listdir(tmp_path) == ["base"]


def test_boosters_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", "llama")
    contextual = Booster.of({1: ContextualInjection.fresh(WIDTH, 2, 0)})
    for vector, error, reason in (
        (contextual, ExportError, "layer 1 .* has a contextual injection"),
        (Booster.static({1: torch.ones(8)}), BoosterError, "hidden size of 8"),
        (booster(layers=(4,)), BoosterError, "layer 4 is out of range"),
    ):
        with pytest.raises(error, match=reason):
            exported(base, tmp_path / "out", vector)
    assert os.listdir(tmp_path) == ["base"]


def test_a_full_export_stands_alone(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", "llama")
    exported(base, tmp_path / "out", full=True)
    assert all(path.stat().st_nlink == 1 and not path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert_close(logits(loaded(tmp_path / "out")), steered(base, booster()))


@pytest.mark.parametrize("lacking", [("link",), ("link", "symlink")])
def test_where_links_are_not_possible_the_next_best_is_done(
    lacking: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def impossible(*arguments: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    base = checkpoint(tmp_path / "base", "llama")
    for name in lacking:
        monkeypatch.setattr(os, name, impossible)
    done = exported(base, tmp_path / "out")
    assert (tmp_path / "out" / overlay.BASE_WEIGHTS).is_symlink() == ("symlink" not in lacking)
    assert any("symbolic links need the base" in note for note in done.notes) == ("symlink" not in lacking)
    assert_close(logits(loaded(tmp_path / "out")), steered(base, booster()))


def test_files_of_the_hubs_cache_are_linked_to_its_blobs(tmp_path: Path) -> None:
    blobs, snapshot = checkpoint(tmp_path / "blobs", "llama"), tmp_path / "snapshot"
    snapshot.mkdir()
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(Path("..") / "blobs" / blob.name)
    exported(snapshot, tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert (tmp_path / "out" / overlay.BASE_WEIGHTS).samefile(blobs / "model.safetensors")


def test_the_folder_says_what_it_is_made_of_and_nothing_of_this_machine(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", "qwen2")
    for name, text in {"LICENSE": "free", "README.md": "another model", "aft_model.json": '{"name": "base"}'}.items():
        (base / name).write_text(text)
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps({**settings, "_name_or_path": str(tmp_path), "auto_map": {"A": "b.C"}})
    )
    booster().save(tmp_path / "a.safetensors")
    exported(base, tmp_path / "out", str(tmp_path / "a.safetensors"), scale=0.5)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"LICENSE", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"} <= names
    assert not {"README.md", "aft_model.json"} & names
    record = json.loads((tmp_path / "out" / "aft_export.json").read_text())
    assert record["booster_sha256"] == booster().sha256 and record["strength"] == 0.5
    assert record["layers"] == [0, 1, 3] and record["form"] == "as Llama" and record["booster"] == "a.safetensors"
    for path in (tmp_path / "out").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())


@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_export_leaves_what_was_there(
    existing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = checkpoint(tmp_path / "base", "llama")
    if existing:
        exported(base, tmp_path / "out", booster(5))

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    before = sorted(os.listdir(tmp_path))
    monkeypatch.setattr(overlay, "_write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        exported(base, tmp_path / "out", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == before
    if existing:
        assert_close(logits(loaded(tmp_path / "out")), steered(base, booster(5)))


def test_a_small_model_is_compared_without_being_asked_to(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", "llama")
    done = exported(base, tmp_path / "out", verify=None)
    found = done.record["verified"]
    assert found["largest_difference_of_logits"] < 1e-5 < 0.05 < found["largest_change_of_logits"]
    assert "verified" not in exported(base, tmp_path / "other").record


@pytest.mark.parametrize("wrong", ["lost", "halved"])
def test_the_comparison_sees_an_export_that_does_something_else(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = checkpoint(tmp_path / "base", "llama")

    def spoilt(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
        name = "model.layers.3.mlp.down_proj.bias"
        kept = {key: tensor for key, tensor in tensors.items() if wrong != "lost" or key != name}
        return save(kept | ({name: tensors[name] / 2} if wrong == "halved" else {}), metadata)

    monkeypatch.setattr("aft_harness.publish.export.overlay.save", spoilt)
    with pytest.raises(
        ExportError, match=r"does not compute what the steered model does|lacks weights|cannot be loaded"
    ):
        exported(base, tmp_path / "out", verify=True)
    assert os.listdir(tmp_path) == ["base"]


def test_a_model_that_was_unpacked_is_no_longer_called_quantised(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", "llama")
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps({**settings, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    )
    exported(base, tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    packed = load_file(base / "model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    packed[f"{name}.qweight"] = packed.pop(f"{name}.weight").to(torch.int32)
    save_file(packed, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match="is quantised, and its weights are packed"):
        exported(base, tmp_path / "other")


def test_folders_that_are_no_checkpoints_are_one_line(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", "llama")
    model = make_tiny_model("llama")

    def refused(reason: str) -> None:
        with pytest.raises(AftError, match=reason):
            exported(base, tmp_path / "out")

    weights = base / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    refused("not a safetensors file, or not a whole one")
    weights.unlink()
    torch.save(model.state_dict(), base / "pytorch_model.bin")
    refused("has neither model.safetensors nor model.safetensors.index.json; load the model with transformers")
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    refused("no weight_map from tensors to files of the folder")
    (base / "model.safetensors.index.json").write_text("{")
    refused("is not JSON")
    (base / "config.json").unlink()
    refused("no configuration")
    with pytest.raises(ModelError, match="no/where: no such folder, and it cannot be had from the hub"):
        exported(Path("no/where"), tmp_path / "out")
    assert os.listdir(tmp_path) == ["base"]


def test_an_export_can_be_exported_from(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", "llama")
    exported(base, tmp_path / "first")
    exported(tmp_path / "first", tmp_path / "second", booster(7))
    both = mix([(booster(), 1.0), (booster(7), 1.0)])
    assert_close(logits(loaded(tmp_path / "second")), steered(base, both))


def test_a_configuration_that_would_be_read_as_another_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aft_harness.publish.export import checkpoint as target

    written = target._config_file
    monkeypatch.setattr(target, "_config_file", lambda *given: {**written(*given), "rms_norm_eps": 0.5})
    with pytest.raises(ExportError, match="the base's settings cannot be carried over: rms_norm_eps"):
        exported(checkpoint(tmp_path / "base", "mistral"), tmp_path / "out")
    assert os.listdir(tmp_path) == ["base"]


def test_a_revision_of_the_hub_is_exported_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main, older = checkpoint(tmp_path / "main", "llama"), checkpoint(tmp_path / "older", "llama", seed=5)
    hub_cache(monkeypatch, tmp_path / "cache", "me/toy", {"main": main, "v1": older})
    export("checkpoint", booster(), tmp_path / "new", model="me/toy")
    export("checkpoint", booster(), tmp_path / "old", model="me/toy", revision="v1")
    assert_close(logits(loaded(tmp_path / "new")), steered(main, booster()))
    assert_close(logits(loaded(tmp_path / "old")), steered(older, booster()))
    with pytest.raises(ModelError, match="me/toy: no such folder, and it cannot be had from the hub"):
        export("checkpoint", booster(), tmp_path / "none", model="me/toy", revision="v2")
    with pytest.raises(ExportError, match="main is a folder, and only a model on the hub has a revision such as v1"):
        export("checkpoint", booster(), tmp_path / "none", model=str(main), revision="v1")
