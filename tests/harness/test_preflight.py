"""What is wrong with a model or its arguments is said before weights are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from harness_cases import booster
from lm_eval.models.huggingface import HFLM

from aft_harness.boosters.booster import Booster
from aft_harness.errors import AftError, ParseError
from aft_harness.harness import loading, preflight
from aft_harness.harness.model import SteeredHFLM


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama"))


def refused(reason: str, pretrained: str, **arguments: Any) -> AftError:
    """That both the check and the model type refuse it, in one line, without loading."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "without_notices", None)  # which a load would call
        with pytest.raises(AftError, match=reason) as caught:
            SteeredHFLM(pretrained, **arguments)
    assert "\n" not in str(caught.value)
    return caught.value


def test_folders(folder: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for place, reason in (
        ("./nofolder", r"^\./nofolder: no such folder$"),
        (str(tmp_path / "nofolder"), "nofolder: no such folder"),
        ("~/nofolder/at/all", "~/nofolder/at/all: no such folder"),
        (str(tmp_path / "file"), "file: not a folder but a file; give a checkpoint folder"),
        (str(tmp_path / "empty"), "no model in this folder"),
    ):
        refused(reason, place)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_devices(folder: str) -> None:
    for device, reason in (
        ("cuda", "device cuda: no CUDA GPU is available.*; use device cpu"),
        ("fpu", "device fpu: expected cpu, cuda, cuda:N or mps"),
    ):
        assert refused(reason, folder, device=device).exit_code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_default_device_of_the_stock_command_line_falls_back_to_the_cpu(folder: str) -> None:
    assert SteeredHFLM(folder, device="cuda:0").device.type == HFLM(folder, device="cuda:0").device.type == "cpu"
    with pytest.raises(ParseError, match="device cuda:0: no CUDA GPU"):  # but whoever asks for it is told
        preflight.check(folder, {"device": "cuda:0"})


def test_a_device_that_is_not_among_those_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    preflight._check_device("cuda:1")
    with pytest.raises(ParseError, match="device cuda:2: the available CUDA devices are cuda:0 to cuda:1"):
        preflight._check_device("cuda:2")


def test_dtypes(folder: str) -> None:
    for dtype in ("foo", "Tensor", "float33"):
        refused(f"dtype {dtype}: expected auto, float32", folder, dtype=dtype)
    for good in ("auto", "float32", torch.bfloat16, None):
        preflight.check(folder, {"dtype": good})


def test_arguments_that_are_nearly_known(folder: str) -> None:
    for wrong, right in (("vectr", "vector"), ("vectors", "vector"), ("dtyp", "dtype"), ("max_lenght", "max_length")):
        assert refused(f"unknown model argument '{wrong}'; did you mean {right}=", folder, **{wrong: 1}).exit_code == 2
    # What transformers takes, or the configuration has, passes.
    for name in ("attn_implementation", "device_map", "rms_norm_eps", "load_in_4bit", "low_cpu_mem_usage", "token"):
        preflight.check(folder, {name: None})


def test_boosters_that_cannot_fit(folder: str) -> None:
    shape = preflight.check(folder, {})
    assert shape is not None and (shape.layers, shape.hidden_size) == (4, 32)
    preflight.check(folder, {}, booster(3))
    refused(
        "the booster is for a hidden size of 8; the model has 32", folder, vector=Booster.static({1: torch.ones(8)})
    )
    refused("the booster's layer 4 is out of range: the model has layers 0 to 3", folder, vector=booster(4))


def test_what_a_configuration_does_not_tell_is_left_to_the_load(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{broken")
    assert preflight.check(str(tmp_path), {}) is None
    (tmp_path / "config.json").write_text('{"model_type": "of_tomorrow"}')
    assert preflight.check(str(tmp_path), {}) is None
    assert preflight.check("no-such-owner/no-such-model", {}) is None
