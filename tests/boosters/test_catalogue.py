"""Names of boosters: those of the package, those that were pulled, and names that must not become paths."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aft_harness.boosters import catalogue, references
from aft_harness.boosters.booster import Booster
from aft_harness.errors import BoosterError, ParseError

BOOSTER = Booster.static({1: torch.ones(4)})


@pytest.fixture(autouse=True)
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AFT_HOME", str(tmp_path / "aft"))
    monkeypatch.setattr(catalogue, "BUNDLED", tmp_path / "bundled")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(folder: Path, booster: Booster = BOOSTER) -> None:
    folder.mkdir(parents=True)
    booster.save(folder / "file.safetensors")


@pytest.mark.parametrize("name", ["a", "me/arc", "smollm2-135m-arc_easy.v2", "_a"])
def test_names_that_can_be(name: str) -> None:
    assert catalogue.check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            ".",
            "..",
            "../x",
            "a/../b",
            "/a",
            "a/",
            "a//b",
            "a/b/c",
            "A",
            "a b",
            "a\\b",
            "~",
            "a--b",
            "-a",
            "a.",
            "é",
        ),
        *("a\n", "a\0", "c:", "x" * 101, "a.safetensors", ".lock", "hf://a"),
    ],
)
def test_names_that_cannot_be(name: str, library: Path) -> None:
    with pytest.raises(ParseError) as caught:
        catalogue.check_name(name)
    assert str(caught.value).isprintable()
    assert catalogue.find(name) is None
    with pytest.raises(ParseError):
        catalogue.place(name)


def test_names_stand_for_boosters(library: Path) -> None:
    put(library / "bundled" / "arc-easy")
    put(catalogue.place("me/arc"), Booster.static({2: torch.ones(4)}))
    assert [(entry.name, entry.bundled) for entry in catalogue.entries()] == [("arc-easy", True), ("me/arc", False)]
    mixed = references.load("arc-easy:0.5+me/arc")
    assert mixed.name == "arc-easy:0.5+me/arc" and mixed.booster is not None and mixed.booster.layers == (1, 2)
    assert Booster.load("me/arc").layers == (2,)
    with pytest.raises(BoosterError, match=r"arc-eazy: no such booster; .*did you mean arc-easy\?"):
        Booster.load("arc-eazy")


def test_a_file_comes_before_a_name_and_a_folder_after(library: Path) -> None:
    put(catalogue.place("arc"))
    (library / "arc").mkdir()
    assert Booster.load("arc").sha256 == BOOSTER.sha256
    (library / "arc").rmdir()
    other = Booster.static({2: torch.ones(4)})
    other.save(library / "x.safetensors")
    (library / "x.safetensors").rename(library / "arc")
    assert Booster.load("arc").sha256 == other.sha256
    assert references.load("arc").name == "arc"


def test_damaged_folders_are_refused(library: Path) -> None:
    place = catalogue.place("arc")
    put(place)
    (place / "README.md").write_text(f"---\nbooster: {{file: file.safetensors, sha256: {'a' * 64}}}\n---\n")
    with pytest.raises(BoosterError, match="arc: not the booster of its card"):
        Booster.load("arc")
    BOOSTER.save(place / "second.safetensors")
    with pytest.raises(BoosterError, match="more than one booster file; pull it again"):
        Booster.load("arc")
    for path in place.iterdir():
        path.unlink()
    with pytest.raises(BoosterError, match="no booster file; pull it again"):
        Booster.load("arc")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"address": 3}', "[" * 5000])
def test_malformed_origins_are_refused(library: Path, text: str) -> None:
    put(catalogue.place("arc"))
    (catalogue.place("arc") / "origin.json").write_text(text)
    entry = catalogue.find("arc")
    assert entry is not None
    with pytest.raises(BoosterError, match=r"origin\.json") as caught:
        _ = entry.origin
    assert str(caught.value).isprintable()
