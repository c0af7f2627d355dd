from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export_cases import checkpoint
from transformers import AutoModelForCausalLM

from aft_harness.engine.identity import identify
from aft_harness.errors import AftError
from aft_harness.publish.export.base import Base
from aft_harness.publish.export.identity import identity_of


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "mistral", "opt", "phi", "qwen2", "starcoder2"])
def test_a_checkpoint_has_the_identity_of_the_loaded_model(architecture: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", architecture)
    for dtype in (torch.float32, torch.bfloat16):
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        found, parameters = identity_of(Base.of(str(folder)))
        assert found == identify(loaded, str(folder)) and found.fingerprint
        assert parameters == loaded.num_parameters()


def test_the_identity_of_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", "llama")
    (model / "model.safetensors").unlink()
    with pytest.raises(AftError, match=r"has neither .* nor"):
        identity_of(Base.of(str(model)))
