"""A model's fingerprint: of its weights and configuration, wherever the weights lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload

from aft_harness.engine.identity import identify


def fingerprint(model: Any) -> str | None:
    return identify(model).fingerprint


@pytest.mark.parametrize("tied", [True, False])
def test_offloaded_weights_are_read_where_they_lie(tied: bool, tiny_model: Any, tmp_path: Path) -> None:
    expected = fingerprint(tiny_model("llama", tie_word_embeddings=tied))
    assert expected is not None
    on_disk = disk_offload(tiny_model("llama", tie_word_embeddings=tied), tmp_path / "offload", torch.device("cpu"))
    assert on_disk.model.layers[0].mlp.down_proj.weight.device.type == "meta"
    assert fingerprint(on_disk) == expected
    assert fingerprint(cpu_offload(tiny_model("llama", tie_word_embeddings=tied), torch.device("cpu"))) == expected
    other = disk_offload(tiny_model("llama", seed=5, tie_word_embeddings=tied), tmp_path / "b", torch.device("cpu"))
    assert fingerprint(other) not in (None, expected)


def test_a_model_whose_weights_are_nowhere_has_no_fingerprint(tiny_model: Any) -> None:
    assert fingerprint(tiny_model("llama").to("meta")) is None


def test_a_compiled_or_rounded_model_is_the_same(tiny_model: Any) -> None:
    expected = fingerprint(tiny_model("llama").bfloat16())
    assert fingerprint(tiny_model("llama").bfloat16().float()) == expected
    compiled = tiny_model("llama").bfloat16()
    compiled.model = torch.compile(compiled.model)
    assert fingerprint(compiled) == expected
    assert fingerprint(tiny_model("llama", seed=3).bfloat16()) != expected
