from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from aft_harness.engine.skeleton import read_config
from aft_harness.errors import BoosterError, ModelError, ParseError
from aft_harness.harness.blueprint import Blueprint
from aft_harness.harness.loading import load_as_hf, parse_arguments, shown
from aft_harness.harness.model import SteeredHFLM


def saved(model: Any, folder: Path, tokenizer: Any) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_models_that_cannot_be_steered_are_one_clear_line(tmp_path: Path, tiny_tokenizer: Any) -> None:
    sizes = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    bert = BertForMaskedLM(BertConfig(**sizes, intermediate_size=64, initializer_range=0.5))
    sizes = {"vocab_size": 320, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    t5 = T5ForConditionalGeneration(T5Config(**sizes, **{"decoder_start_token_id": 0}))
    (tmp_path / "empty").mkdir()
    cases = {
        saved(bert, tmp_path / "bert", tiny_tokenizer): "not a causal language model",
        saved(t5, tmp_path / "t5", tiny_tokenizer): "is not a causal language model but seq2seq",
        str(tmp_path / "empty"): "empty: no model in this folder",
        "no-such-owner/no-such-model": "no-such-owner/no-such-model cannot be loaded",
        str(tmp_path / "nowhere"): "nowhere: no such folder",
    }
    for pretrained, reason in cases.items():
        with pytest.raises(ModelError, match=reason) as caught:
            SteeredHFLM(pretrained=pretrained, device="cpu")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"hidden_size": "wide"}, "hidden_size"), ({"num_attention_heads": 5}, "attention heads")],
)
def test_settings_that_no_model_can_have_are_one_line(
    settings: dict[str, Any], reason: str, tiny_checkpoint: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    for load in (
        lambda: SteeredHFLM(str(folder), device="cpu"),
        lambda: read_config(folder),
        lambda: Blueprint(str(folder), {}),
    ):
        with pytest.raises(ModelError, match=reason) as caught:
            load()
        assert "\n" not in str(caught.value)


def test_memory_that_does_not_suffice_is_said(tiny_model: Any) -> None:
    def load(**_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    for pretrained, name in (("some/model", "some/model"), (tiny_model("llama"), "LlamaForCausalLM")):
        assert shown(pretrained) == name
        with pytest.raises(ModelError, match=f"^{name} does not fit on cpu; try dtype=bfloat16$"):
            load_as_hf(load, pretrained, device="cpu")


def test_what_is_wrong_already_says_so() -> None:
    def load(**_: Any) -> None:
        raise BoosterError("of another size")

    with pytest.raises(BoosterError, match="of another size"):
        load_as_hf(load, "some/model")


def test_model_arguments_are_read_as_lm_eval_reads_them() -> None:
    read = parse_arguments("dtype=float32,max_length=128,trust_remote_code=True,scale=0.5")
    assert read == {"dtype": "float32", "max_length": 128, "trust_remote_code": True, "scale": 0.5}
    assert parse_arguments("") == {}
    with pytest.raises(ParseError, match="'max_length': expected key=value pairs separated by commas"):
        parse_arguments("dtype=float32,max_length")
