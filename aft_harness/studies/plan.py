"""What a transfer study asks: models x training tasks x layers x seeds x evaluation tasks, read from YAML or options.

Knows words and numbers only. Knows nothing of models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from aft_harness.errors import AftError, TaskError
from aft_harness.harness.examples import Prompting, TaskSelection
from aft_harness.results.pairing import bounds
from aft_harness.training.recipe import RECIPES, Settings

Layers = tuple[int, ...] | Literal["all"] | None
"""Of one training; None is what the recipe says."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_KEYS = ("models", "train", "evaluate", "layers", "seeds", "recipe", "include_path", "num_fewshot", "split_seed")


@dataclass(frozen=True)
class Evaluation:
    """One task to evaluate on.

    Attributes:
        task: lm-eval's name.
        docs: Documents by id, as a slice `a:b`.
        limit: Or so many from the first.
        seeds: Only boosters of these seeds; None takes all.
    """

    task: str
    docs: str | None = None
    limit: int | None = None
    seeds: tuple[int, ...] | None = None

    def takes(self, seed: int) -> bool:
        """Whether boosters of a seed are evaluated."""
        return self.seeds is None or seed in self.seeds


@dataclass(frozen=True)
class Plan:
    """A transfer study.

    Attributes:
        models: Arguments of `SteeredHFLM`, each.
        sources: By name, the tasks that one booster learns from.
        evaluations: What every booster is evaluated on.
        layers: Where boosters act, each.
        seeds: Of the training, each.
        settings: How to train; layers and seed are replaced.
        prompting: How prompts are formatted.
    """

    models: tuple[Mapping[str, Any], ...]
    sources: Mapping[str, tuple[TaskSelection, ...]]
    evaluations: tuple[Evaluation, ...]
    layers: tuple[Layers, ...]
    seeds: tuple[int, ...]
    settings: Settings
    prompting: Prompting

    @classmethod
    def read(cls, path: Path, models: Sequence[Mapping[str, Any]] = ()) -> Plan:
        """The plan of a YAML file; relative paths in it are relative to its folder.

        Args:
            path: The file.
            models: Replace those of the file.

        Raises:
            TaskError: It cannot be read, or is no plan.
        """
        try:
            told = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise TaskError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())[:200]})") from None
        if not isinstance(told, dict):
            raise TaskError(f"{path}: is no plan: it has to name models, train and evaluate")
        included = [str(path.parent / folder) for folder in told.get("include_path", [])]
        try:
            return cls.of({**told, "include_path": included, **({"models": list(models)} if models else {})})
        except AftError as error:
            raise TaskError(f"{path}: {error}") from None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Plan:
        """The plan of what a YAML file or the options say.

        Raises:
            TaskError: It is no plan.
        """
        if unknown := sorted(set(told) - set(_KEYS)):
            raise TaskError(f"unknown key {unknown[0]!r}; a plan has {', '.join(_KEYS)}")
        for key in ("models", "train", "evaluate"):
            if not told.get(key):
                raise TaskError(f"{key!r} is missing or empty")
        models = [{"pretrained": one} if isinstance(one, str) else one for one in told["models"]]
        if not all(isinstance(one, dict) and "pretrained" in one for one in models):
            raise TaskError("each of 'models' needs 'pretrained'")
        seeds = tuple(told.get("seeds", [0]))
        if not seeds or not all(isinstance(seed, int) for seed in seeds):
            raise TaskError("'seeds' must be whole numbers")
        return cls(
            models=tuple(models),
            sources={str(name): _source(str(name), selections) for name, selections in _items("train", told["train"])},
            evaluations=tuple(_evaluation(str(task), how) for task, how in _items("evaluate", told["evaluate"])),
            layers=tuple(_layers(one) for one in told.get("layers", [None])),
            seeds=seeds,
            settings=_settings(told.get("recipe", {}), told.get("split_seed", 0)),
            prompting=Prompting(num_fewshot=told.get("num_fewshot"), include_path=tuple(told.get("include_path", []))),
        )


def _items(key: str, told: Any) -> list[tuple[Any, Any]]:
    """Names with what is said of them: a mapping, or a list of names of which nothing is."""
    if isinstance(told, Mapping):
        return list(told.items())
    if isinstance(told, Sequence) and not isinstance(told, str):
        return [(name, None) for name in told]
    raise TaskError(f"{key!r} must be a mapping or a list of names")


def _source(name: str, selections: Any) -> tuple[TaskSelection, ...]:
    if not _NAME.fullmatch(name):
        raise TaskError(f"train: {name!r} is no name: letters, digits and . _ + - only")
    known = {field.name for field in fields(TaskSelection)} - {"name", "development_only"}
    tasks = _items(f"train: {name}", selections) if selections else [(name, None)]
    found = []
    for task, how in tasks:
        how = how or {}
        if not isinstance(how, Mapping) or set(how) - known:
            raise TaskError(f"train: {name}: {task}: expected some of {', '.join(sorted(known))}")
        for key, kind in (("limit", int), ("dev_docs", int), ("weight", int | float), ("train_docs", str)):
            if key in how and not isinstance(how[key], kind):
                raise TaskError(f"train: {name}: {task}: {key} {how[key]!r} is not valid")
        found.append(TaskSelection(str(task), **how))
    return tuple(found)


def _evaluation(task: str, how: Any) -> Evaluation:
    how = dict(how or {})
    if set(how) - {"docs", "limit", "seeds"}:
        raise TaskError(f"evaluate: {task}: expected some of docs, limit, seeds")
    if how.get("docs") is not None and how.get("limit") is not None:
        raise TaskError(f"evaluate: {task}: docs and limit exclude each other")
    if how.get("docs") is not None:
        bounds(str(how["docs"]))
    if how.get("limit") is not None and not (isinstance(how["limit"], int) and how["limit"] > 0):
        raise TaskError(f"evaluate: {task}: limit {how['limit']!r} is not a number of documents")
    if how.get("seeds") is not None:
        how["seeds"] = tuple(how["seeds"])
    return Evaluation(task, **how)


def _layers(told: Any) -> Layers:
    if told is None or told == "all":
        return told
    layers = told if isinstance(told, list) else [told]
    if not layers or not all(isinstance(layer, int) and not isinstance(layer, bool) for layer in layers):
        raise TaskError(f"layers: {told!r}: expected all, a layer, or a list of layers of one booster")
    return tuple(layers)


def _settings(told: Any, split_seed: Any) -> Settings:
    known = {field.name for field in fields(Settings)} - {"layers", "seed", "split_seed"}
    if not isinstance(told, Mapping) or set(told) - known - {"name"}:
        raise TaskError(f"recipe: expected some of name, {', '.join(sorted(known))}")
    told = dict(told)
    name = told.pop("name", "default")
    if name not in RECIPES:
        raise TaskError(f"recipe: {name!r} is not one of {', '.join(RECIPES)}")
    try:
        return replace(RECIPES[name], **told, split_seed=int(split_seed))
    except (TypeError, ValueError) as error:
        raise TaskError(f"recipe: {error}") from None
