"""What a transfer study asks: models x training tasks x layers x seeds x evaluation tasks, read from YAML or options.

Knows words and numbers only. Knows nothing of models, and loads no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from aft_harness.boosters.layers import Layers
from aft_harness.engine.gguf_file import is_gguf
from aft_harness.errors import AftError, TaskError
from aft_harness.harness.selection import PromptFormat, TaskSelection
from aft_harness.slices import Slice, SplitSlice
from aft_harness.studies import plan_file
from aft_harness.studies.workers import Workers
from aft_harness.training.recipe import RECIPES, Settings

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
SEEDS = 2**32
"""Seeds are smaller: every generator of random numbers takes these."""

_KEYS = (
    *("models", "train", "evaluate", "layers", "seeds", "recipe", "include_path", "num_fewshot", "split_seed"),
    "workers",
)


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

    @property
    def slice(self) -> Slice | None:
        """The documents, where they are named by id."""
        return Slice.parse(self.docs) if self.docs is not None else None


@dataclass(frozen=True)
class Plan:
    """A transfer study.

    Attributes:
        models: Arguments of `SteeredHFLM`, each.
        files: For each of these, the GGUF files on which its boosters are evaluated, too: arguments of `SteeredGgufLM`.
        sources: By name, the tasks that one booster learns from.
        evaluations: What every booster is evaluated on.
        layers: Where boosters act, each; None is what the recipe says.
        seeds: Of the training, each.
        settings: How to train; layers and seed are replaced.
        prompt_format: How prompts are formatted.
        include_path: Folders with further task YAMLs.
        workers: What cells get where they run on a cluster; changes no result.
    """

    models: tuple[Mapping[str, Any], ...]
    files: tuple[tuple[Mapping[str, Any], ...], ...]
    sources: Mapping[str, tuple[TaskSelection, ...]]
    evaluations: tuple[Evaluation, ...]
    layers: tuple[Layers | None, ...]
    seeds: tuple[int, ...]
    settings: Settings
    prompt_format: PromptFormat
    include_path: tuple[str, ...] = ()
    workers: Workers = field(default_factory=Workers)

    @classmethod
    def read(cls, path: Path, models: Sequence[Mapping[str, Any]] = ()) -> Plan:
        """The plan of a YAML file; relative paths in it are relative to its folder.

        Args:
            path: The file.
            models: Replace those of the file.

        Raises:
            TaskError: It cannot be read, or is no plan.
        """
        content = plan_file.read(path)
        try:
            plan_file.check_plain(content)
            included = [str(path.parent / folder) for folder in _strings("include_path", content)]
            replaced = {"models": list(models)} if models else {}
            return cls.of({**content, "include_path": included, **replaced}, path.parent)
        except AftError as error:
            raise TaskError(f"{path}: {error}") from None

    @classmethod
    def of(cls, content: Mapping[str, Any], folder: Path | None = None) -> Plan:
        """The plan of what a YAML file or the options say.

        Args:
            content: By key.
            folder: What the paths of GGUF files are relative to.

        Raises:
            TaskError: It is no plan.
        """
        plan_file.check_plain({key: value for key, value in content.items() if key != "models"})
        if unknown := sorted(map(str, set(content) - set(_KEYS))):
            raise TaskError(f"unknown key {unknown[0]!r}; a plan has {', '.join(_KEYS)}")
        for key in ("models", "train", "evaluate"):
            if not content.get(key):
                raise TaskError(f"{key!r} is missing or empty")
        models = [dict(model) for model in _models("models", content["models"])]
        files = tuple(_files(model.pop("files", None), folder or Path()) for model in models)
        if named := [model["pretrained"] for model in models if is_gguf(model["pretrained"])]:
            raise TaskError(
                f"models: {named[0]}: boosters are trained on the checkpoint that a GGUF file was made from; name that "
                "one, and the file under its 'files'"
            )
        layers = content.get("layers", [None])
        if not isinstance(layers, Sequence) or isinstance(layers, str) or not layers:
            raise TaskError("'layers' must be a list: one entry for each booster, such as [all, 8, [8, 16], 1-]")
        return cls(
            models=tuple(models),
            files=files,
            sources={name: _source(name, selections) for name, selections in _items("train", content["train"])},
            evaluations=tuple(_evaluation(task, how) for task, how in _items("evaluate", content["evaluate"])),
            layers=tuple(None if value is None else Layers.of(value) for value in layers),
            seeds=_seeds("'seeds'", content.get("seeds", [0])),
            settings=_settings(_given(content, "recipe", {}), content.get("split_seed", 0)),
            prompt_format=PromptFormat(num_fewshot=_count("num_fewshot", content.get("num_fewshot"), least=0)),
            include_path=tuple(_strings("include_path", content)),
            workers=Workers.of(_given(content, "workers", {})),
        )


def _models(key: str, value: Any) -> list[Mapping[str, Any]]:
    """Arguments of models, of which a text is the name of one."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TaskError(f"{key!r} must be a list")
    models = [{"pretrained": model} if isinstance(model, str) else model for model in value]
    if not all(isinstance(model, Mapping) and isinstance(model.get("pretrained"), str) for model in models):
        raise TaskError(f"each of {key!r} needs 'pretrained'")
    if strange := [name for model in models for name in model if not isinstance(name, str)]:
        raise TaskError(f"{key}: {strange[0]!r} is not the name of a model argument")
    return models


def _files(value: Any, folder: Path) -> tuple[Mapping[str, Any], ...]:
    """The GGUF files of a model."""
    found = []
    for file in _models("files", value or []):
        if not is_gguf(file["pretrained"]):
            raise TaskError(f"files: {file['pretrained']}: not a .gguf file; a checkpoint is one of 'models'")
        if taken := {"vector", "scale"} & set(file):
            raise TaskError(f"files: {min(taken)} cannot be given; a study evaluates its own boosters")
        found.append({**file, "pretrained": str(folder / file["pretrained"])})
    return tuple(found)


def _given(content: Mapping[str, Any], key: str, default: Any) -> Any:
    """What is said; nothing is said also by a key without a value, but not by 0, an empty text or an empty list."""
    return default if content.get(key) is None else content[key]


def _items(key: str, value: Any) -> list[tuple[str, Any]]:
    """Names with what is said of them: a mapping, or a list of names of which nothing is."""
    if isinstance(value, Mapping):
        if strange := [name for name in value if not isinstance(name, str)]:
            raise TaskError(f"{key}: the name {strange[0]!r} is not text; put it in quotes")
        return list(value.items())
    if isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(name, str) for name in value):
        return [(name, None) for name in value]
    raise TaskError(f"{key!r} must be a mapping or a list of names")


def _strings(key: str, content: Mapping[str, Any]) -> list[str]:
    value = _given(content, key, [])
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise TaskError(f"{key!r} must be a list of folders")
    return list(value)


def _count(what: str, value: Any, least: int = 1) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise TaskError(f"{what} {value!r} is not a whole number of at least {least}")
    return value


def _text(what: str, value: Any) -> str:
    if not isinstance(value, str):  # YAML reads 4:50 as a number of base 60
        raise TaskError(f"{what} {value!r} is not text; put it in quotes, such as '4:50'")
    return value


def _seeds(what: str, value: Any) -> tuple[int, ...]:
    numbers = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    if not numbers or not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in value):
        raise TaskError(f"{what} must be a list of whole numbers")
    if wrong := [seed for seed in value if not 0 <= seed < SEEDS]:
        raise TaskError(f"{what}: {wrong[0]} is not from 0 to {SEEDS - 1}")
    return tuple(value)


def _source(name: str, selections: Any) -> tuple[TaskSelection, ...]:
    if not _NAME.fullmatch(name):
        raise TaskError(f"train: {name!r} is not a valid name; use only letters, digits and . _ + -")
    known = {each.name for each in fields(TaskSelection)} - {"name", "development_only"}
    tasks = [(name, None)] if selections is None else _items(f"train: {name}", selections)
    if not tasks:
        raise TaskError(f"train: {name}: no tasks given")
    found = []
    for task, how in tasks:
        how = {} if how is None else how
        where = f"train: {name}: {task}"
        if not isinstance(how, Mapping) or set(how) - known:
            raise TaskError(f"{where}: expected any of {', '.join(sorted(known))}")
        how = dict(how)
        if how.get("limit") == "all":
            how["limit"] = None
        _count(f"{where}: limit", how.get("limit"))
        if "dev_docs" in how and _count(f"{where}: dev_docs", how["dev_docs"], least=0) is None:
            raise TaskError(f"{where}: dev_docs must be a number")
        weight = how.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise TaskError(f"{where}: weight {weight!r} is not a positive number")
        if how.get("train_docs") is not None:
            SplitSlice.parse(_text(f"{where}: train_docs", how["train_docs"]))
        if how.get("target_field") is not None:
            _text(f"{where}: target_field", how["target_field"])
        found.append(TaskSelection(task, **how))
    return tuple(found)


def _evaluation(task: str, how: Any) -> Evaluation:
    how = {} if how is None else how
    if not isinstance(how, Mapping) or set(how) - {"docs", "limit", "seeds"}:
        raise TaskError(f"evaluate: {task}: expected any of docs, limit, seeds")
    how = dict(how)
    if how.get("docs") is not None and how.get("limit") is not None:
        raise TaskError(f"evaluate: {task}: docs and limit cannot be used together")
    if how.get("docs") is not None:
        Slice.parse(_text(f"evaluate: {task}: docs", how["docs"]))
    _count(f"evaluate: {task}: limit", how.get("limit"))
    if how.get("seeds") is not None:
        how["seeds"] = _seeds(f"evaluate: {task}: seeds", how["seeds"])
    return Evaluation(task, **how)


def _settings(recipe: Any, split_seed: Any) -> Settings:
    known = {each.name for each in fields(Settings)} - {"layers", "seed", "split_seed"}
    if not isinstance(recipe, Mapping) or set(recipe) - known - {"name"}:
        raise TaskError(f"recipe: expected any of name, {', '.join(sorted(known))}")
    if isinstance(split_seed, bool) or not isinstance(split_seed, int):
        raise TaskError(f"split_seed {split_seed!r} is not a whole number")
    changes = dict(recipe)
    name = changes.pop("name", "default")
    if not isinstance(name, str) or name not in RECIPES:
        raise TaskError(f"recipe: {name!r} is not one of {', '.join(RECIPES)}")
    for key in ("epochs", "batch_size", "rank", "samples"):
        if key in changes and _count(f"recipe: {key}", changes[key]) is None:
            raise TaskError(f"recipe: {key} must be a number")
    for key in ("lr", "temperature", "keep", "kl"):
        value = changes.get(key)
        absent = key not in changes or (value is None and key == "temperature")
        if not absent and (isinstance(value, bool) or not isinstance(value, int | float)):
            hint = f"; write {float(value)}" if isinstance(value, str) and _is_number(value) else ""
            raise TaskError(f"recipe: {key} {value!r} is not a number{hint}")
    if changes.get("reward") is not None:
        _text("recipe: reward", changes["reward"])
    try:
        return replace(RECIPES[name], **changes, split_seed=split_seed)
    except (TypeError, ValueError) as error:
        raise TaskError(f"recipe: {error}") from None


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))  # YAML reads 1e-3, without a point, as text
    except ValueError:
        return False
