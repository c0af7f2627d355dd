from __future__ import annotations

import pytest
import torch
from reader_cases import FakeReader

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.injections import ContextualInjection
from aft_harness.boosters.variant import BASELINE, Variant
from aft_harness.engine.control_vectors import check_one_by_one, check_steering, distance, vectors_of
from aft_harness.errors import BoosterError, ModelError

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def test_a_variant_is_its_scaled_vectors() -> None:
    booster = Booster.static({1: torch.ones(4), 3: torch.arange(4.0), 2: torch.zeros(4)})
    found = vectors_of(Variant("v", booster, 0.5))
    assert found is not None and list(found) == [1, 3]
    assert torch.equal(found[3], torch.tensor([0.0, 0.5, 1.0, 1.5]))
    assert vectors_of(BASELINE) is vectors_of(Variant("v", booster, 0.0)) is None
    assert vectors_of(Variant("v", Booster.static({0: torch.zeros(4)}))) is None


def test_what_llama_cpp_cannot_add_is_refused_with_the_way_out() -> None:
    with pytest.raises(BoosterError, match=r"layer 0; write the booster into a copy.*gguf-model.*--layers 1-"):
        vectors_of(Variant("v", Booster.static({0: torch.ones(4), 1: torch.ones(4)})))
    injection = ContextualInjection.fresh(4, 2, seed=0)
    booster = Booster.of({1: injection.with_tensors({name: one + 1 for name, one in injection.tensors.items()})})
    with pytest.raises(BoosterError, match=r"contextual injection.*steered-hf.*--kind static"):
        vectors_of(Variant("v", booster))


def test_a_vector_that_is_left_out_is_seen() -> None:
    vectors = {1: torch.ones(2), 3: torch.full((2,), 0.25)}
    check_steering(FakeReader(), vectors, TOKENS, "v")
    reader = FakeReader()
    reader.deaf = True
    with pytest.raises(ModelError, match=r"v: llama\.cpp leaves the control vector out: with its layers steered"):
        check_steering(reader, vectors, TOKENS, "v")
    with pytest.raises(ModelError, match="with layer 3 steered"):  # only one of them has no effect
        check_steering(FakeReader(), {**vectors, 3: torch.zeros(2)}, TOKENS, "v")


def test_kernels_that_disagree_are_seen() -> None:
    check_one_by_one(FakeReader(), TOKENS, 1e-6)
    reader = FakeReader()
    reader.fickle = True
    with pytest.raises(ModelError, match=r"read together.*one by one.*repack=off"):
        check_one_by_one(reader, TOKENS, 0.3)


def test_the_distance_of_two_readers() -> None:
    one, other = FakeReader(), FakeReader()
    assert distance(one, other, TOKENS) == 0
    other.fickle = True
    assert distance(one, other, TOKENS) > 0.1
