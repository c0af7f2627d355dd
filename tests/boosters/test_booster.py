from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from booster_cases import SPEC, made

from aft_harness.boosters import references
from aft_harness.boosters.booster import Booster
from aft_harness.boosters.mixing import mix
from aft_harness.errors import AftError, BoosterError


def test_identity_follows_its_definition() -> None:
    vector = torch.tensor([1.0, -2.0])
    digest = hashlib.sha256()
    digest.update(b"layers.4.vector\0[2]\0" + vector.numpy().astype("<f4").tobytes())
    digest.update(json.dumps({"4": SPEC}, sort_keys=True, separators=(",", ":")).encode())
    assert Booster.static({4: vector}).sha256 == digest.hexdigest()


def test_identity_ignores_provenance_and_sees_tensors_and_layers() -> None:
    assert made(2, date="2025-01-01").sha256 == made(2, date="2025-01-02").sha256
    assert made(2).sha256 != made(3).sha256
    assert made(2).sha256 != made(2).scaled(2.0).sha256


def test_a_booster_does_not_share_memory_with_what_it_was_made_of() -> None:
    vector = torch.ones(4)
    booster = Booster.static({0: vector})
    vector.zero_()
    assert booster.tensors["layers.0.vector"].sum() == 4


@pytest.mark.parametrize("layers", [{}, {-1: torch.ones(2)}, {True: torch.ones(2)}, {1: torch.tensor([float("inf")])}])
def test_a_booster_that_no_file_could_hold_cannot_be_made(layers: dict[int, torch.Tensor]) -> None:
    with pytest.raises(BoosterError):
        Booster.static(layers)


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_must_be_finite(strength: float) -> None:
    with pytest.raises(BoosterError, match="finite"):
        made(1).scaled(strength)


def test_errors_are_typed() -> None:
    assert issubclass(BoosterError, AftError) and issubclass(BoosterError, ValueError)


def test_some_fields_of_its_provenance_are_changed_and_the_others_kept() -> None:
    booster = made(2, method="aft", seed=1)
    changed = booster.with_provenance(licence="MIT", method="mix")
    assert (changed.provenance.licence, changed.provenance.method) == ("MIT", "mix")
    assert (booster.provenance.licence, booster.provenance.method) == (None, "aft")
    assert changed.sha256 == booster.sha256


def test_loading_takes_whatever_a_reference_may_be(tmp_path: Path) -> None:
    first, second = made(1, seed=1), made(2, seed=2)
    for name, booster in (("a", first), ("b", second)):
        booster.save(tmp_path / f"{name}.safetensors")
    path = f"{tmp_path}/a.safetensors"
    assert Booster.load(path).sha256 == Booster.load(Path(path)).sha256 == Booster.load(first).sha256 == first.sha256
    assert Booster.load(f"{path}:0.5").sha256 == Booster.load({path: 0.5}).sha256 == first.scaled(0.5).sha256
    both: list[Any] = [f"{path}+{tmp_path}/b.safetensors:-2", [path, (second, -2)]]
    assert {Booster.load(spec).sha256 for spec in both} == {mix([(first, 1.0), (second, -2.0)]).sha256}
    assert references.load(path).strength == 1.0
