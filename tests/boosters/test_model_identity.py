from __future__ import annotations

from aft_harness.boosters.model_identity import ModelIdentity


def test_models_are_told_apart_by_what_is_known() -> None:
    model = ModelIdentity(name="toy", fingerprint="a" * 64)
    assert not model.differs_from(model)
    assert not model.differs_from(ModelIdentity(name="renamed", fingerprint="a" * 64))
    assert not model.differs_from(ModelIdentity(name="toy"))  # nothing is known of it
    assert model.differs_from(ModelIdentity(name="toy", fingerprint="b" * 64))
    assert not ModelIdentity(name="toy").differs_from(model)  # nor of this one


def test_labels_name_the_model() -> None:
    assert ModelIdentity(name="toy", fingerprint="0123456789abcdef").label == "toy (0123456789ab)"
    assert ModelIdentity(name="toy").label == "toy (unknown)"
