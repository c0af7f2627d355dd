"""The `.pt` of hotwire-vllm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from publish_cases import booster, vectors_of

from aft_harness.errors import ExportError
from aft_harness.publish.export.registry import export


def test_the_first_tensor_is_the_matrix(tmp_path: Path) -> None:
    made = booster(0, 2)
    done = export("hotwire", made, tmp_path / "arc easy.pt", scale=-0.5)
    content = torch.load(done.path, weights_only=True)
    matrix = next(value for value in content.values() if isinstance(value, torch.Tensor))
    assert matrix.shape == (4, 32) and matrix.dtype == torch.float32
    for layer in range(4):
        expected = -0.5 * vectors_of(made)[layer] if layer in (0, 2) else torch.zeros(32)
        assert torch.equal(matrix[layer], expected)
    assert json.loads(content["aft"])["booster_sha256"] == made.sha256
    assert "for n in [0, 2]]" in done.use and '"id": "arc easy"' in done.use and "HOTWIRE_SLOTS=16" in done.use
    assert "--no-enable-prefix-caching" in done.use and "'" + str(done.path) + "'" in done.use


def test_slots_for_every_layer(tmp_path: Path) -> None:
    made = booster(*range(30), base=None)
    done = export("hotwire", made, tmp_path / "v.pt")
    assert "HOTWIRE_SLOTS=32" in done.use and "for n in range(0, 30)]" in done.use
    with pytest.raises(ExportError, match="layer 5 is out of range: the base model has 4 layers"):
        export("hotwire", booster(5), tmp_path / "w.pt")
