from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.card_header import inside, load_checked, named_by
from aft_harness.errors import BoosterError


@pytest.mark.parametrize("path", ["a", "a/b.c", "a-b_c/d", "ä.safetensors"])
def test_paths_inside(path: str) -> None:
    assert inside(path)


@pytest.mark.parametrize(
    "path", ["", "/a", "a/", "a//b", "..", ".", "a/../b", "a/...", "a\\b", "a:b", "a\0", "a b", "~"]
)
def test_paths_that_lead_elsewhere(path: str) -> None:
    assert not inside(path)


def test_the_card_names_its_booster(tmp_path: Path) -> None:
    booster = Booster.static({1: torch.ones(4)})
    booster.save(tmp_path / "a.safetensors")
    card = tmp_path / "README.md"
    card.write_text(f"---\nbooster:\n  file: a.safetensors\n  sha256: {booster.sha256}\n---\n", encoding="utf-8-sig")
    assert named_by(card) == ("a.safetensors", booster.sha256)
    assert load_checked(tmp_path / "a.safetensors", "a.safetensors", card, "it").sha256 == booster.sha256
    Booster.static({1: torch.zeros(4)}).save(tmp_path / "a.safetensors")
    with pytest.raises(BoosterError, match=r"^it: not the booster of its card"):
        load_checked(tmp_path / "a.safetensors", "a.safetensors", card, "it")
    assert load_checked(tmp_path / "a.safetensors", "a.safetensors", None, "it").is_zero
