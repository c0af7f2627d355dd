"""What `pip install` would put where: the wheels that hatchling makes of the checkout, without a network."""

from __future__ import annotations

import configparser
import pkgutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BRIDGE = {"aft_harness.pth", "aft_harness_boot.py"}


def build(target: str, folder: Path, root: Path = ROOT) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = folder.iterdir()
    return made


def files_of(folder: Path) -> set[str]:
    return {
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(build("wheel", tmp_path_factory.mktemp("wheel"))) as opened:
        yield opened


@pytest.fixture(scope="module")
def editable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(build("wheel:editable", tmp_path_factory.mktemp("editable"))) as opened:
        yield opened


def contents(wheel: zipfile.ZipFile) -> set[str]:
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


def entry_points(wheel: zipfile.ZipFile) -> dict[str, dict[str, str]]:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    parser = configparser.ConfigParser(delimiters="=")
    parser.read_string(wheel.read(name).decode())
    return {section: dict(parser[section]) for section in parser.sections()}


def test_a_wheel_holds_the_package_the_tasks_and_the_bridge_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tasks = {f"aft_harness/tasks/{name}" for name in files_of(ROOT / "tasks")}
    package = {f"aft_harness/{name}" for name in files_of(ROOT / "aft_harness") if not name.startswith("bridge/")}
    assert tasks and "aft_harness/lm.py" in package
    assert contents(wheel) == package | tasks | BRIDGE


def test_an_editable_wheel_holds_a_path_and_the_bridge(editable: zipfile.ZipFile) -> None:
    assert contents(editable) == BRIDGE | {"_aft_harness.pth"}
    assert editable.read("_aft_harness.pth").decode().strip() == str(ROOT)


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_both_have_the_bridge_of_the_checkout(kind: str, request: pytest.FixtureRequest) -> None:
    made: zipfile.ZipFile = request.getfixturevalue(kind)
    for name in BRIDGE:
        assert made.read(name) == (ROOT / "aft_harness" / "bridge" / name).read_bytes()


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_both_declare_the_commands_and_the_model(kind: str, request: pytest.FixtureRequest) -> None:
    assert entry_points(request.getfixturevalue(kind)) == {
        "console_scripts": {"aft": "aft_harness.cli:main", "aft-train": "aft_harness.cli:train_main"},
        "lm_eval.models": {
            "steered-gguf": "aft_harness.harness.gguf:SteeredGgufLM",
            "steered-hf": "aft_harness.lm:SteeredHFLM",
            "steered-vllm": "aft_harness.publish.vllm:SteeredVLLM",
        },
    }


def test_the_addresses_of_the_model_types_lead_to_them(wheel: zipfile.ZipFile) -> None:
    from aft_harness.harness.gguf import SteeredGgufLM
    from aft_harness.harness.model import SteeredHFLM
    from aft_harness.publish.vllm import SteeredVLLM

    found = {name: pkgutil.resolve_name(at) for name, at in entry_points(wheel)["lm_eval.models"].items()}
    assert found == {"steered-gguf": SteeredGgufLM, "steered-hf": SteeredHFLM, "steered-vllm": SteeredVLLM}


def test_the_version_is_that_of_the_package(wheel: zipfile.ZipFile) -> None:
    import aft_harness

    assert Path(str(wheel.filename)).name == f"aft_harness-{aft_harness.__version__}-py3-none-any.whl"


def test_a_source_distribution_makes_the_same_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    with zipfile.ZipFile(build("wheel", tmp_path / "wheel", source)) as again:
        assert contents(again) == contents(wheel)
