"""Settings, the named recipes, and what is minimised where nothing is said."""

from __future__ import annotations

import math
from typing import Any

import pytest

from aft_harness.boosters.layers import Layers
from aft_harness.errors import AftError, ModelError, ParseError, TrainingError
from aft_harness.training.recipe import RECIPES, Settings, objective_of


def test_settings_without_arguments_are_the_default_recipe() -> None:
    default = Settings()
    assert default == RECIPES["default"]
    assert default.layers == Layers("1-") and default.temperature is None and default.objective is None
    assert default.keep == 3.0
    assert (default.lr, default.rate_unit, default.schedule) == (0.05, "residual", "linear")
    assert (default.epochs, default.batch_size, default.kind) == (3, 8, "static")


def test_the_original_recipe_is_as_first_published() -> None:
    original = RECIPES["original"]
    assert original.layer_indices(32) == (16,)
    assert (original.objective, original.temperature, original.epochs, original.batch_size) == ("answer", 1.0, 5, 4)
    assert (original.lr, original.rate_unit, original.schedule, original.keep) == (1e-2, "absolute", "constant", 0.0)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("all", (0, 1, 2, 3)), ("middle", (2,)), (3, (3,)), ((2, 0), (0, 2)), ("1-", (1, 2, 3)), ("0,2-3", (0, 2, 3))],
)
def test_layers_are_resolved_for_a_model(layers: Any, expected: tuple[int, ...]) -> None:
    assert Settings(layers=layers).layer_indices(4) == expected


def test_equal_layers_are_equal_settings_however_they_are_written() -> None:
    assert Settings(layers=8) == Settings(layers="8") == Settings(layers=[8]) == Settings(layers=Layers.of((8,)))


@pytest.mark.parametrize(
    ("wrong", "kind", "reason"),
    [
        ({"epochs": 0}, TrainingError, "epochs 0 must be at least 1"),
        ({"batch_size": 0}, TrainingError, "batch_size 0 must be at least 1"),
        ({"rank": 0}, TrainingError, "rank 0 must be at least 1"),
        ({"lr": 0.0}, TrainingError, "learning rate 0.0 must be a positive number"),
        ({"lr": math.nan}, TrainingError, "learning rate nan must be a positive number"),
        ({"lr": math.inf}, TrainingError, "learning rate inf must be a positive number"),
        ({"temperature": 0.0}, TrainingError, "temperature 0.0 must be a positive number"),
        ({"temperature": math.nan}, TrainingError, "temperature nan must be a positive number"),
        ({"kind": "dynamic"}, TrainingError, "kind 'dynamic' is not one of static, contextual"),
        ({"objective": "best"}, TrainingError, "objective 'best' is not one of"),
        ({"choice_norm": "words"}, TrainingError, "choice_norm 'words' is not one of"),
        ({"rate_unit": "relative"}, TrainingError, "rate_unit 'relative' is not one of"),
        ({"schedule": "cosine"}, TrainingError, "schedule 'cosine' is not one of"),
        ({"layers": "some"}, ParseError, "layers 'some'"),
        ({"layers": []}, ParseError, r"layers \[\]"),
    ],
)
def test_values_that_cannot_train_are_refused(wrong: dict[str, Any], kind: type[AftError], reason: str) -> None:
    with pytest.raises(kind, match=reason) as error:
        Settings(**wrong)
    assert "--" not in str(error.value)


def test_a_layer_that_the_model_lacks_is_refused_once_the_model_is_known() -> None:
    settings = Settings(layers=(1, 4))
    assert settings.layer_indices(5) == (1, 4)
    with pytest.raises(ModelError, match="layer 4 is out of range: the model has layers 0 to 3"):
        settings.layer_indices(4)


def test_what_is_minimised_follows_from_the_kind_of_task() -> None:
    for asked in (None, "answer", "choice", "both"):
        assert objective_of("text", asked) == "answer"  # type: ignore[arg-type]
        assert objective_of("choice", asked) == (asked or "both")  # type: ignore[arg-type]
