"""Checkpoints to export from, boosters for them, and what a model says with a booster: the oracle of exports."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tiny_model, make_tiny_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from aft_harness.boosters.booster import Booster
from aft_harness.engine.steering import Steering

WIDTH = 32
TOKENS = torch.tensor([[1, 5, 9, 200, 17, 4, 4, 90, 33, 250, 12, 7, 61, 2, 8, 300, 18, 44, 21, 70, 15, 6, 3, 99]])


def booster(seed: int = 0, layers: tuple[int, ...] = (0, 1, 3)) -> Booster:
    """Vectors that change what every model says."""
    generator = torch.Generator().manual_seed(seed)
    return Booster.static({layer: torch.randn(WIDTH, generator=generator) for layer in layers})


def checkpoint(folder: Path, architecture: str, dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
    """A folder with a tiny model, none of whose biases is zero, and a tokenizer."""
    shard = settings.pop("max_shard_size", "1GB")
    model = make_tiny_model(architecture, **settings)
    with torch.no_grad():
        for index, (name, parameter) in enumerate(model.named_parameters()):
            if name.endswith("bias"):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    make_tiny_tokenizer().save_pretrained(folder)
    return folder


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model as anybody loads it; every weight is found, and none is left over."""
    load: Any = AutoModelForCausalLM.from_pretrained
    model, report = load(folder, dtype=dtype, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    found: PreTrainedModel = model.eval()
    return found


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def steered(folder: Path, booster: Booster, strength: float = 1.0) -> torch.Tensor:
    """The logits of a folder's model with a booster, in float32; they differ from those without."""
    model = loaded(folder)
    plain = logits(model)
    with Steering(model, booster, strength):
        found = logits(model)
    assert float((found - plain).abs().max()) > 0.05
    return found


def assert_close(left: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-5)


def hub_cache(monkeypatch: pytest.MonkeyPatch, cache: Path, repo: str, revisions: dict[str, Path]) -> None:
    """Lets the hub's cache hold a model, by branch, and the hub be out of reach."""
    from huggingface_hub import constants

    home = cache / f"models--{repo.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    for index, (branch, folder) in enumerate(revisions.items()):
        commit = f"{index:040x}"
        (home / "refs" / branch).write_text(commit)
        shutil.copytree(folder, home / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
