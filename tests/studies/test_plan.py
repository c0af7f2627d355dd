from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aft_harness.errors import AftError
from aft_harness.harness.examples import TaskSelection
from aft_harness.studies.plan import Evaluation, Plan
from aft_harness.training.recipe import RECIPES

SMALL: dict[str, Any] = {"models": ["m"], "train": ["a"], "evaluate": ["b"]}


def test_a_small_plan_is_three_lists() -> None:
    plan = Plan.of(SMALL)
    assert plan.models == ({"pretrained": "m"},) and plan.seeds == (0,) and plan.layers == (None,)
    assert plan.sources == {"a": (TaskSelection("a"),)} and plan.evaluations == (Evaluation("b"),)
    assert plan.settings == RECIPES["default"]


def test_a_plan_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(
        """
models: [{pretrained: m, dtype: bfloat16}]
train:
  a: {a: {limit: 5, dev_docs: 2}}
  a+b: {a: {weight: 2.0}, b: {train_docs: "test[0:9]"}}
evaluate: {a: {docs: "3:9"}, b: {limit: 4, seeds: [1]}, c: }
layers: [all, 8, [8, 16]]
seeds: [0, 1]
recipe: {name: original, epochs: 2}
include_path: [tasks]
"""
    )
    plan = Plan.read(path)
    assert plan.models == ({"pretrained": "m", "dtype": "bfloat16"},)
    assert plan.sources["a"] == (TaskSelection("a", limit=5, dev_docs=2),)
    assert plan.sources["a+b"] == (TaskSelection("a", weight=2.0), TaskSelection("b", train_docs="test[0:9]"))
    assert plan.evaluations == (Evaluation("a", docs="3:9"), Evaluation("b", limit=4, seeds=(1,)), Evaluation("c"))
    assert plan.layers == ("all", (8,), (8, 16)) and plan.seeds == (0, 1)
    assert (plan.settings.objective, plan.settings.epochs) == ("answer", 2)
    assert plan.prompting.include_path == (str(tmp_path / "tasks"),)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"models": []}, "'models' is missing or empty"),
        ({"modles": ["m"]}, "unknown key 'modles'"),
        ({"models": [{"dtype": "x"}]}, "needs 'pretrained'"),
        ({"train": "a"}, "'train' must be a mapping or a list"),
        ({"train": {"../a": None}}, "'../a' is no name"),
        ({"train": {"a": {"a": {"limits": 3}}}}, "train: a: a: expected some of"),
        ({"train": {"a": {"a": {"limit": "3"}}}}, "limit '3' is not valid"),
        ({"evaluate": {"b": {"docs": "3"}}}, "--docs 3"),
        ({"evaluate": {"b": {"docs": "3:4", "limit": 3}}}, "exclude each other"),
        ({"evaluate": {"b": {"limit": 0}}}, "limit 0"),
        ({"layers": ["some"]}, "layers: 'some'"),
        ({"seeds": ["x"]}, "'seeds' must be whole numbers"),
        ({"recipe": {"rate": 3}}, "recipe: expected some of"),
        ({"recipe": {"name": "best"}}, "'best' is not one of"),
        ({"recipe": {"epochs": "3"}}, "recipe: "),
        ({"recipe": {"epochs": 0}}, "--epochs"),
    ],
)
def test_what_is_no_plan_is_one_clear_error(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(AftError) as error:
        Plan.of({**SMALL, **wrong})
    assert reason in str(error.value)


@pytest.mark.parametrize("text", ["- a\n- b", "a: [", "just text"])
def test_a_file_that_is_no_plan_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(AftError, match=r"plan\.yaml: "):
        Plan.read(path)
