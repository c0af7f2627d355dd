from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import WIDTH, assert_close, booster, checkpoint, hub_cache, loaded, logits, steered
from safetensors.torch import load_file

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.injections import ContextualInjection
from aft_harness.errors import ExportError
from aft_harness.publish.export.registry import export

peft = pytest.importorskip("peft")

ARCHITECTURES = ["falcon", "gemma", "granite", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3"]


@pytest.mark.filterwarnings("ignore:.*has no bias")
@pytest.mark.parametrize("form", ["beft", "lora"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_with_the_adapter_says_what_the_steered_model_says(
    architecture: str, form: str, tmp_path: Path
) -> None:
    base = checkpoint(tmp_path / "base", architecture, **({"pad_token_id": 0} if architecture == "phi3" else {}))
    export("peft", booster(), tmp_path / "out", model=str(base), form=form, scale=0.5)
    plain = logits(loaded(base))
    model = peft.PeftModel.from_pretrained(loaded(base), tmp_path / "out")
    assert_close(logits(model), steered(base, booster(), 0.5))
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    suffix = {"beft": "beft_bias.default", "lora": "lora_B.default.bias"}[form]
    assert sum(name.endswith(suffix) for name in model.state_dict()) == 3  # what `Exported.check` counts


def test_gpt2_takes_the_form_that_it_can(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", "gpt2")
    with pytest.raises(ExportError, match=r"takes a torch.nn.Linear, which mlp.c_proj of gpt2 is not; use --form lora"):
        export("peft", booster(), tmp_path / "out", model=str(base))
    export("peft", booster(), tmp_path / "out", model=str(base), form="lora")
    model = peft.PeftModel.from_pretrained(loaded(base), tmp_path / "out")
    assert_close(logits(model), steered(base, booster()))


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3_text", "olmo2", "mixtral"])
def test_what_cannot_be_said_exactly_is_refused(architecture: str, tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", architecture)
    with pytest.raises(ExportError, match="no linear layer's bias is added to the decoder layer's output"):
        export("peft", booster(), tmp_path / "out", model=str(base))
    assert os.listdir(tmp_path) == ["base"]


def test_contextual_injections_are_refused(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", "llama")
    with pytest.raises(ExportError, match="contextual"):
        export("peft", Booster.of({1: ContextualInjection.fresh(WIDTH, 2, 0)}), tmp_path / "out", model=str(base))


@pytest.mark.filterwarnings("ignore:.*has no bias")
@pytest.mark.parametrize("form", ["beft", "lora"])
def test_the_files_are_those_that_peft_itself_writes(form: str, tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base", "llama")
    export("peft", booster(), tmp_path / "ours", model=str(base), form=form)
    target = r"model\.layers\.(0|1|3)\.mlp\.down_proj"
    settings: Any = (
        peft.BeftConfig(target_modules=target, task_type="CAUSAL_LM")
        if form == "beft"
        else peft.LoraConfig(r=1, lora_alpha=1, lora_bias=True, target_modules=target, task_type="CAUSAL_LM")
    )
    peft.get_peft_model(loaded(base), settings).save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs"))
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    mine, its = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("ours", "theirs"))
    assert {name: its[name] for name in mine if name != "base_model_name_or_path"} == {
        name: value for name, value in mine.items() if name != "base_model_name_or_path"
    }
    assert mine["base_model_name_or_path"] is None  # a folder of this machine


def test_a_revision_is_what_the_adapter_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = checkpoint(tmp_path / "main", "gemma2")  # which no adapter is exact for
    older = checkpoint(tmp_path / "older", "llama")
    hub_cache(monkeypatch, tmp_path / "cache", "me/toy", {"main": main, "v1": older})
    done = export("peft", booster(), tmp_path / "out", model="me/toy", revision="v1")
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("me/toy", "v1")
    assert "pretrained=me/toy,revision=v1,peft=" in done.use
    assert "from_pretrained('me/toy', revision='v1')" in done.use
    model = peft.PeftModel.from_pretrained(loaded(older), tmp_path / "out")
    assert_close(logits(model), steered(older, booster()))
    with pytest.raises(ExportError, match="older is a folder, and only a model on the hub has a revision such as v1"):
        export("peft", booster(), tmp_path / "none", model=str(older), revision="v1")
