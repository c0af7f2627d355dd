"""The house: floors import downwards only, modules are small, tests mirror them, and light imports stay light."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import aft_harness

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "aft_harness"

FLOORS = (
    "ground",
    "boosters",
    "engine",
    "results",
    "harness",
    "training",
    "publish",
    "studies",
    "api",
    "cli",
)
"""From the bottom to the top."""

PLACES = {
    **dict.fromkeys(("digests", "errors", "files", "progress", "slices", "text", "versions"), "ground"),
    "__init__": "api",  # offers what the front door does
    "lm": "harness",  # an address of the model type
    "__main__": "cli",
    "demo": "cli",  # these two stand apart, at the top
    "bridge": "cli",
}
"""The floors of what does not bear a floor's name."""

HEAVY = ("torch", "lm_eval", "transformers", "datasets", "pandas", "numpy", "scipy", "matplotlib")
WITHOUT_LM_EVAL = ("boosters", "engine", "results")
MODULE_LINES, CLASS_LINES = 350, 250

OF_SEVERAL = {
    "api": {"api"},
    "cli": {"endings", "leaderboard_replace", "stock_lm_eval"},
    "publish": {"report_browser"},
    "results": {"malformed"},
}
"""Test files by floor that are of several modules at once."""

MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """The dotted name of a module inside the package, such as `boosters.layers`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def floor_of(module: str) -> str:
    head = module.split(".")[0]
    return PLACES.get(head, head)


def is_module(name: str) -> bool:
    """Whether a dotted name inside the package is a module or a folder of modules."""
    place = PACKAGE.joinpath(*name.split("."))
    return place.is_dir() or place.with_suffix(".py").is_file()


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that a file imports, wherever in it: also in functions and for type checkers only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "relative imports hide the floor that they reach"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def inner(tree: ast.AST) -> Iterator[str]:
    """The names inside this package that a file imports, without the package's name."""
    for name in imported(tree):
        if name.startswith("aft_harness."):
            yield name.removeprefix("aft_harness.")


def of_the_package(tree: ast.AST) -> Iterator[str]:
    """What a file takes from the package itself by `import aft_harness`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "aft_harness":
            yield node.attr


def violations(module: str, tree: ast.AST) -> list[str]:
    """Imports of a module that reach a higher floor."""
    height = FLOORS.index(floor_of(module))
    found = []
    for target in [*inner(tree), *of_the_package(tree)]:
        if target == "__version__":
            continue
        if not is_module(target):  # a name in a module, or one that the front door offers
            target = target.rpartition(".")[0] or "__init__"
        if FLOORS.index(floor_of(target)) > height:
            found.append(f"{module} ({floor_of(module)}) imports {target} ({floor_of(target)})")
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_floor_imports_what_stands_below_it(path: Path) -> None:
    module, tree = name_of(path), ast.parse(path.read_text(encoding="utf-8"))
    assert floor_of(module) in FLOORS, f"{module} stands on no floor"
    assert not violations(module, tree)
    if floor_of(module) in WITHOUT_LM_EVAL:
        assert not [name for name in imported(tree) if name.split(".")[0] == "lm_eval"], module
    if path.name != "__init__.py" or path.parent == PACKAGE:
        return
    if floor_of(module) != "cli":  # whose commands register themselves
        assert len(tree.body) == 1 and ast.get_docstring(tree), f"{module}: a floor's own file is a docstring"


@pytest.mark.parametrize(
    ("code", "reached"),
    [
        ("from aft_harness.engine.steering import Steering", "engine.steering"),
        ("def f():\n    from aft_harness.harness import guards", "harness.guards"),
        ("if TYPE_CHECKING:\n    import aft_harness.api", "api"),
        ("from aft_harness import api", "api"),
        ("from aft_harness import train", "__init__"),
        ("import aft_harness\naft_harness.evaluate", "__init__"),
        ("from aft_harness.demo import run", "demo"),
        ("import aft_harness\naft_harness.__version__", None),
        ("from aft_harness import files", None),
        ("from aft_harness.boosters.layers import Layers", None),
    ],
)
def test_every_way_up_is_seen(code: str, reached: str | None) -> None:
    found = violations("boosters.booster", ast.parse(code))
    assert [line.split(" imports ")[1].split(" ")[0] for line in found] == ([reached] if reached else [])


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_and_classes_are_small_and_say_what_they_know(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{path}: the first lines say what the module knows"
    assert len(text.splitlines()) <= MODULE_LINES
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            assert node.end_lineno and node.end_lineno - node.lineno + 1 <= CLASS_LINES, node.name


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert not [name for name in set(names) if names.count(name) > 1], "pytest imports them by these names"


def test_tests_mirror_floors() -> None:
    for floor in FLOORS:
        if not (PACKAGE / floor).is_dir():
            continue
        tests = sorted((ROOT / "tests" / floor).rglob("test_*.py"))
        assert tests, f"tests/{floor} is missing"
        # Names of test files are unique, so that some bear their floor's name too.
        modules = {name for path in (PACKAGE / floor).rglob("*.py") for name in (path.stem, f"{floor}_{path.stem}")}
        tested = {test.stem.removeprefix("test_") for test in tests} - OF_SEVERAL.get(floor, set())
        strangers = sorted(tested - modules)
        assert not strangers, f"tests/{floor}: {strangers} test no module of that floor"


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after `code`, beyond those that it starts with."""
    program = f"""
import sys
before = set(sys.modules)
{code}
import json
sys.stdout.write("\\n" + json.dumps(sorted(set(sys.modules) - before)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def heavy(modules: set[str]) -> set[str]:
    return {name.split(".")[0] for name in modules} & set(HEAVY)


def test_importing_the_package_imports_next_to_nothing() -> None:
    loaded = loaded_by("import aft_harness")
    foreign = {name.split(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    assert foreign == {"aft_harness"}
    assert {name for name in loaded if name.startswith("aft_harness")} == {"aft_harness"}
    assert len(loaded) < 40, sorted(loaded)  # `typing` and what it needs


@pytest.mark.parametrize(
    "module",
    ["studies.plan", "training.recipe", "harness.selection", "boosters.layers", "publish.export.registry", "cli"],
)
def test_words_and_numbers_are_read_without_torch(module: str) -> None:
    assert not heavy(loaded_by(f"import aft_harness.{module}"))


def test_help_loads_no_torch() -> None:
    code = """
import runpy
sys.argv = ["aft", "--help"]
try:
    runpy.run_module("aft_harness", run_name="__main__")
except SystemExit as ended:
    assert not ended.code
"""
    assert not heavy(loaded_by(code))


def test_the_help_of_every_command_loads_no_torch() -> None:
    code = """
import click
from aft_harness.cli import main
def ask(command, words):
    try:
        main([*words, "--help"])
    except SystemExit as ended:
        assert not ended.code, words
    for name, child in getattr(command, "commands", {}).items():
        ask(child, [*words, name])
ask(main, [])
"""
    assert not heavy(loaded_by(code))


def test_every_public_name_is_there() -> None:
    assert sorted(aft_harness.__all__) == dir(aft_harness)
    for name in aft_harness.__all__:
        assert getattr(aft_harness, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = aft_harness.nothing
