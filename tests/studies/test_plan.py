"""Plans: what is read, what their words mean, and what is refused."""

from __future__ import annotations

import datetime
import math
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from aft_harness.errors import AftError, TaskError
from aft_harness.harness.selection import TRAINING_DOCUMENTS, PromptFormat, TaskSelection
from aft_harness.slices import Slice
from aft_harness.studies.plan import Evaluation, Plan
from aft_harness.training.recipe import RECIPES, Settings

SMALL: dict[str, Any] = {"models": ["m"], "train": ["a"], "evaluate": ["b"]}


def test_a_small_plan_is_three_lists() -> None:
    plan = Plan.of(SMALL)
    assert plan.models == ({"pretrained": "m"},) and plan.seeds == (0,) and plan.layers == (None,)
    assert plan.sources == {"a": (TaskSelection("a"),)} and plan.evaluations == (Evaluation("b"),)
    assert plan.settings == RECIPES["default"] == Settings()
    assert plan.prompt_format == PromptFormat() and plan.include_path == ()


def test_a_plan_learns_from_as_many_documents_as_a_training_does() -> None:
    mixture = {"c": {"dev_docs": 3}, "d": {"limit": "all"}, "e": {"limit": 7}}
    plan = Plan.of({**SMALL, "train": {"a": None, "b": mixture}})
    assert TRAINING_DOCUMENTS == 600 == TaskSelection("a").limit
    assert [selection.limit for selections in plan.sources.values() for selection in selections] == [600, 600, None, 7]


def test_a_plan_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(
        """
models: [{pretrained: m, dtype: bfloat16}]
train:
  a: {a: {limit: 5, dev_docs: 2}}
  a+b: {a: {weight: 2.0}, b: {train_docs: "test[0:9]"}}
evaluate: {a: {docs: "3:9"}, b: {limit: 4, seeds: [1]}, c: }
layers: [all, 8, [8, 16], "4-8", 1-]
seeds: [0, 1]
recipe: {name: original, epochs: 2}
include_path: [tasks]
num_fewshot: 2
split_seed: 3
"""
    )
    plan = Plan.read(path)
    assert plan.models == ({"pretrained": "m", "dtype": "bfloat16"},)
    assert plan.sources["a"] == (TaskSelection("a", limit=5, dev_docs=2),)
    assert plan.sources["a+b"] == (TaskSelection("a", weight=2.0), TaskSelection("b", train_docs="test[0:9]"))
    assert plan.evaluations == (Evaluation("a", docs="3:9"), Evaluation("b", limit=4, seeds=(1,)), Evaluation("c"))
    assert [layers and layers.text for layers in plan.layers] == ["all", "8", "8,16", "4-8", "1-"]
    assert plan.seeds == (0, 1)
    assert (plan.settings.objective, plan.settings.epochs) == ("answer", 2)
    assert plan.settings.split_seed == 3 and plan.prompt_format == PromptFormat(num_fewshot=2)
    assert plan.include_path == (str(tmp_path / "tasks"),)
    assert plan.evaluations[0].slice == Slice(3, 9) and plan.evaluations[1].slice is None
    assert [plan.evaluations[1].takes(seed) for seed in (0, 1)] == [False, True]
    other = Plan.read(path, [{"pretrained": "n"}])
    assert other.models == ({"pretrained": "n"},) and other.sources == plan.sources


def test_files_of_a_model_are_relative_to_the_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(
        "models: [m, {pretrained: n, files: [q4.gguf, {pretrained: /q8.GGUF, n_threads: 2}]}]\n"
        "train: [a]\nevaluate: [b]"
    )
    plan = Plan.read(path)
    assert plan.models == ({"pretrained": "m"}, {"pretrained": "n"})
    second = {"pretrained": str(tmp_path / "q4.gguf")}, {"pretrained": "/q8.GGUF", "n_threads": 2}
    assert plan.files == ((), second)


WRONG: dict[str, tuple[dict[Any, Any], str]] = {
    "no models": ({"models": []}, "'models' is missing or empty"),
    "a file that is trained on": (
        {"models": ["x.gguf"]},
        "x.gguf: boosters are trained on the checkpoint that a GGUF file was made from",
    ),
    "files that are none": ({"models": [{"pretrained": "m", "files": ["n"]}]}, "files: n: not a .gguf file"),
    "files that are no list": ({"models": [{"pretrained": "m", "files": "n.gguf"}]}, "'files' must be a list"),
    "a file with a booster": (
        {"models": [{"pretrained": "m", "files": [{"pretrained": "n.gguf", "vector": "v"}]}]},
        "files: vector cannot be given; a study evaluates its own boosters",
    ),
    "a number for models": ({"models": 5}, "'models' must be a list"),
    "a model without a name": ({"models": [{"dtype": "x"}]}, "needs 'pretrained'"),
    "a model's argument that is no word": ({"models": [{"pretrained": "m", 5: 1}]}, "models: 5 is not the name"),
    "an unknown key": ({"modles": ["m"]}, "unknown key 'modles'"),
    "a key that is no word": ({5: ["m"]}, "unknown key '5'"),
    "text for train": ({"train": "a"}, "'train' must be a mapping or a list"),
    "a number in train": ({"train": [5]}, "'train' must be a mapping or a list"),
    "a path for a name": ({"train": {"../a": None}}, "'../a' is not a valid name"),
    "an unknown word of a source": ({"train": {"a": {"a": {"limits": 3}}}}, "train: a: a: expected any of"),
    "a source's key that is no word": ({"train": {"a": {"a": {5: 3}}}}, "train: a: a: expected any of"),
    "a limit in quotes": ({"train": {"a": {"a": {"limit": "3"}}}}, "limit '3' is not a whole number of at least 1"),
    "a negative limit": ({"train": {"a": {"a": {"limit": -1}}}}, "limit -1 is not a whole number of at least 1"),
    "half a document": ({"train": {"a": {"a": {"limit": 1.5}}}}, "limit 1.5 is not"),
    "not a valid number of development documents": (
        {"train": {"a": {"a": {"dev_docs": None}}}},
        "dev_docs must be a number",
    ),
    "a weight that is no number": ({"train": {"a": {"a": {"weight": math.nan}}}}, "weight nan is not a positive"),
    "no weight": ({"train": {"a": {"a": {"weight": 0}}}}, "weight 0 is not a positive number"),
    "rows that are none": ({"train": {"a": {"a": {"train_docs": "test[3"}}}}, "'test[3' does not name rows"),
    "a slice that is none": ({"evaluate": {"b": {"docs": "3"}}}, "'3' is not a slice of documents"),
    "docs and limit": ({"evaluate": {"b": {"docs": "3:4", "limit": 3}}}, "cannot be used together"),
    "nothing to evaluate": ({"evaluate": {"b": {"limit": 0}}}, "limit 0"),
    "a negative number to evaluate": ({"evaluate": {"b": {"limit": -1}}}, "evaluate: b: limit -1"),
    "a number for an evaluation": ({"evaluate": {"b": 5}}, "evaluate: b: expected any of docs, limit, seeds"),
    "a number for its seeds": ({"evaluate": {"b": {"seeds": 0}}}, "evaluate: b: seeds must be a list"),
    "layers in words": ({"layers": ["some"]}, "layers 'some'"),
    "a number for layers": ({"layers": 3}, "'layers' must be a list"),
    "no layers": ({"layers": []}, "'layers' must be a list"),
    "layers that are no numbers": ({"layers": [{"a": 1}]}, "layers {'a': 1}"),
    "seeds in words": ({"seeds": ["x"]}, "'seeds' must be a list of whole numbers"),
    "a number for seeds": ({"seeds": 0}, "'seeds' must be a list of whole numbers"),
    "no seeds": ({"seeds": []}, "'seeds' must be a list of whole numbers"),
    "an unknown setting": ({"recipe": {"rate": 3}}, "recipe: expected any of"),
    "a setting that is no word": ({"recipe": {5: 3}}, "recipe: expected any of"),
    "layers in the recipe": ({"recipe": {"layers": "all"}}, "recipe: expected any of"),
    "an unknown recipe": ({"recipe": {"name": "best"}}, "'best' is not one of default, original"),
    "epochs in quotes": ({"recipe": {"epochs": "3"}}, "recipe: epochs '3'"),
    "half an epoch": ({"recipe": {"epochs": 1.5}}, "recipe: epochs 1.5"),
    "no epochs": ({"recipe": {"epochs": 0}}, "recipe: epochs 0"),
    "a rate in quotes": ({"recipe": {"lr": "0.1"}}, "recipe: "),
    "no rate": ({"recipe": {"lr": math.nan}}, "recipe: learning rate nan"),
    "an endless seed": ({"split_seed": math.inf}, "split_seed inf is not a whole number"),
    "a number of examples in words": ({"num_fewshot": "two"}, "num_fewshot 'two'"),
    "an endless number of layers": ({"layers": [10**30]}, "layers"),
    "a seed that is none": ({"seeds": [-1]}, "'seeds': -1 is not from 0 to 4294967295"),
    "a seed beyond generators": ({"seeds": [2**32]}, "'seeds': 4294967296 is not from 0"),
    "a truth for a seed": ({"seeds": [True]}, "'seeds' must be a list of whole numbers"),
    "a base-60 number for documents": ({"evaluate": {"b": {"docs": 290}}}, "docs 290 is not text; put it in quotes"),
    "a number for rows": ({"train": {"a": {"a": {"train_docs": 5}}}}, "train_docs 5 is not text; put it in quotes"),
    "a truth for a name": ({"train": {True: None}}, "train: the name True is not text"),
    "a number for a task": ({"evaluate": {5: None}}, "evaluate: the name 5 is not text"),
    "zero for a source": ({"train": {"a": 0}}, "'train: a' must be a mapping or a list"),
    "no task in a source": ({"train": {"a": []}}, "train: a: no tasks given"),
    "zero for the recipe": ({"recipe": 0}, "recipe: expected any of"),
    "a list for the recipe": ({"recipe": []}, "recipe: expected any of"),
    "zero for folders": ({"include_path": 0}, "'include_path' must be a list of folders"),
    "no number of epochs": ({"recipe": {"epochs": None}}, "recipe: epochs must be a number"),
    "no rate at all": ({"recipe": {"lr": None}}, "recipe: lr None is not a number"),
    "a truth for a rate": ({"recipe": {"lr": True}}, "recipe: lr True is not a number"),
    "a rate without a point": ({"recipe": {"lr": "1e-3"}}, "recipe: lr '1e-3' is not a number; write 0.001"),
    "a list for a temperature": ({"recipe": {"temperature": [1]}}, "recipe: temperature [1] is not a number"),
    "a date": ({"evaluate": {"b": {"limit": datetime.date(2024, 1, 1)}}}, "evaluate.b.limit: unexpected type date"),
    "bytes": ({"train": [b"a"]}, "train.0: unexpected type bytes; put text in quotes"),
    "a set": ({"seeds": {1, 2}}, "seeds: unexpected type set"),
    "a number of many digits": ({"num_fewshot": 10**30}, "num_fewshot: a whole number of more than 64 bits"),
    "nested lists": ({"layers": [[[[[[[[[[[[[[1]]]]]]]]]]]]]]}, "'layers' is nested more than 12 levels deep"),
    "text for folders": ({"include_path": "tasks"}, "'include_path' must be a list of folders"),
    "a number among folders": ({"include_path": [5]}, "'include_path' must be a list of folders"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_plan_is_one_line_that_names_the_file(name: str, tmp_path: Path) -> None:
    wrong, reason = WRONG[name]
    with pytest.raises(AftError) as error:
        Plan.of({**SMALL, **wrong})
    assert reason in str(error.value)
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **wrong}))
    with pytest.raises(TaskError) as named:
        Plan.read(path)
    assert str(named.value).startswith(f"{path}: ")
    assert reason in str(named.value) or "nested" in str(named.value)  # a file's values are counted one level less
    assert "\n" not in str(named.value) and "--" not in str(named.value).replace(str(path), "")


UNREADABLE = [
    *(
        "a: !!int x",
        "a: !!float x",
        "a: !!bool x",
        "a: !!timestamp x",
        "a: !!binary \u00e9",
        "a: !!python/object:os.system x",
    ),
    *("a: &a [*a]", "&a {models: *a}", "a: 1\na: 2", f"a: 0x{'f' * 5000}", f"a: {'9' * 4500}", f"a: {'x' * 5000}"),
    "a: 1\n" * 40_000,
    "models: [m]\ntrain: [a]\nevaluate: [b]\nlayers: [8]\nlayers: [9]",
]


@pytest.mark.parametrize(
    "text",
    ["- a\n- b", "a: [", "just text", "", "5", "a: 2024-13-45", "? [a]\n: b", "a: \x00", "[" * 5000, *UNREADABLE],
)
def test_a_file_that_is_no_plan_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(TaskError, match=r"plan\.yaml: ") as error:
        Plan.read(path)
    assert "\n" not in str(error.value)
    with pytest.raises(TaskError, match=r"nowhere\.yaml: no such file"):
        Plan.read(tmp_path / "nowhere.yaml")


@pytest.mark.timeout(20)
def test_a_plan_is_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(TaskError, match=rf"^{path}: not a regular file$"):
            Plan.read(path)


def test_aliases_are_read_where_they_are_few(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(
        "models: [m]\ntrain: {a: {a: &few {limit: 3}, b: {<<: *few, weight: 2.0}, c: *few}}\nevaluate: [b]\n"
    )
    selections = Plan.read(path).sources["a"]
    assert [(selection.limit, selection.weight) for selection in selections] == [(3, 1.0), (3, 2.0), (3, 1.0)]


def test_what_is_left_empty_is_not_said() -> None:
    plan = Plan.of({**SMALL, "recipe": None, "include_path": None, "num_fewshot": None})
    assert plan == Plan.of(SMALL)
