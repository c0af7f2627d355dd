from __future__ import annotations

from pathlib import Path

import pytest
import torch
from booster_cases import made

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.file_format import sidecar
from aft_harness.boosters.mixing import mix
from aft_harness.boosters.provenance import Documents
from aft_harness.errors import BoosterError


def test_mixing_adds_layer_by_layer() -> None:
    one, two = made(1, 2, seed=1), made(2, 5, seed=2)
    mixed = mix([(one, 1.0), (two, -0.5)])
    assert mixed.layers == (1, 2, 5)
    expected = one.tensors["layers.2.vector"] - 0.5 * two.tensors["layers.2.vector"]
    torch.testing.assert_close(mixed.tensors["layers.2.vector"], expected)
    torch.testing.assert_close(mixed.tensors["layers.5.vector"], -0.5 * two.tensors["layers.5.vector"])


def test_mixing_remembers_parts_and_training_documents() -> None:
    one = made(1, documents={"hashes": ["a" * 16]}, tasks=[{"task": "x"}])
    two = made(1, documents={"hashes": ["b" * 16, "a" * 16]}, tasks=[{"task": "y"}], seed=3)
    mixed = mix([(one, 1.0), (two, 2.0)])
    assert mixed.provenance.documents is not None and mixed.provenance.documents.hashes == ("a" * 16, "b" * 16)
    assert mixed.provenance.trained_on == ["x", "y"]
    parts = mixed.provenance.parts or ()
    assert [(part.strength, part.booster_sha256) for part in parts] == [(1.0, one.sha256), (2.0, two.sha256)]


def test_a_mixture_says_what_its_parts_have_lost(tmp_path: Path) -> None:
    long = Booster.static(
        {0: torch.ones(4)}, {"documents": {"count": 2001, "hashes": [f"{n:016x}" for n in range(2001)]}}
    )
    short = Booster.static({1: torch.ones(4)}, {"documents": {"count": 1, "hashes": ["f" * 16]}})
    path = tmp_path / "long.safetensors"
    long.save(path)
    assert mix([(Booster.load(path), 1.0), (short, 1.0)]).provenance.unlisted == 0
    sidecar(path).unlink()
    lossy = mix([(Booster.load(path), 1.0), (short, 1.0)])
    assert lossy.provenance.unlisted == 2001
    assert lossy.provenance.hashes == {"f" * 16}
    lossy.save(path)
    assert mix([(Booster.load(path), 1.0)]).provenance.unlisted == 2001


def test_mixing_refuses_what_does_not_belong_together() -> None:
    with pytest.raises(BoosterError, match="hidden size"):
        mix([(made(1, hidden=8), 1.0), (made(1, hidden=4), 1.0)])
    of_a, of_b = ({"base_model": {"name": name, "fingerprint": name * 20}} for name in "ab")
    with pytest.raises(BoosterError, match="different models"):
        mix([(made(1, **of_a), 1.0), (made(1, **of_b), 1.0)])
    with pytest.raises(BoosterError, match="nothing"):
        mix([])


def test_mixtures_of_mixtures_can_always_be_saved(tmp_path: Path) -> None:
    path, booster = tmp_path / "a.safetensors", made(1, method="aft", seed=3)
    for _ in range(60):  # each nests the provenance of the one before
        booster = mix([(booster, 0.5), (made(1), 0.5)])
        booster.save(path)
    assert Booster.load(path).provenance == booster.provenance
    wide = made(1, hyperparameters={"text": "x" * 2**20}, method="aft", more=[[1]])
    (part,) = mix([(wide, 1.0)]).provenance.parts or ()
    assert part.provenance == {"method": "aft"} and part.booster_sha256 == wide.sha256


def test_a_mixture_says_by_which_rules_its_hashes_were_made() -> None:
    today, earlier = Documents.learned(["a" * 16]), {"count": 1, "hashes": ["b" * 16]}
    mixed = [made(1, documents=documents) for documents in (today, earlier, None)]
    for parts, rules in ((mixed, 1), ([mixed[0], mixed[2]], 2), ([mixed[2]], None)):
        documents = mix([(part, 1.0) for part in parts]).provenance.documents
        assert documents is not None and documents.normalisation == rules
