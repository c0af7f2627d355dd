from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from aft_harness.boosters import hub
from aft_harness.boosters.booster import Booster
from aft_harness.boosters.references import Reference, load, parse
from aft_harness.errors import AftError, BoosterError, ReferenceSyntaxError


def saved(path: Path, value: float = 1.0) -> Booster:
    booster = Booster.static({1: torch.full((4,), value)})
    booster.save(path)
    return booster


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.safetensors", [("a.safetensors", 1.0)]),
        ("a.safetensors:0.5", [("a.safetensors", 0.5)]),
        ("a.safetensors:-2", [("a.safetensors", -2.0)]),
        ("a.safetensors:1e-1+b.safetensors", [("a.safetensors", 0.1), ("b.safetensors", 1.0)]),
        ("a.safetensors:1e+1+b.safetensors:.5", [("a.safetensors", 10.0), ("b.safetensors", 0.5)]),
        ("A+B/a.safetensors", [("A+B/a.safetensors", 1.0)]),
        ("math+code:0.5", [("math", 1.0), ("code", 0.5)]),
        (
            "hf://me/boosters/a.safetensors@v1:2+x.safetensors",
            [("hf://me/boosters/a.safetensors@v1", 2.0), ("x.safetensors", 1.0)],
        ),
        ("C:\\x\\a.safetensors:3", [("C:\\x\\a.safetensors", 3.0)]),
        ("a.safetensors+a.safetensors", [("a.safetensors", 1.0), ("a.safetensors", 1.0)]),
    ],
)
def test_grammar(text: str, expected: list[tuple[str, float]]) -> None:
    assert [(part.source, part.strength) for part in parse(text)] == expected


def test_an_existing_path_wins_whole(tmp_path: Path) -> None:
    odd = tmp_path / "a.safetensors+b.safetensors:0.5"
    saved(odd)
    assert parse(str(odd)) == [Reference(str(odd), 1.0)]


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "  ",
        "a.safetensors:x",
        "a.safetensors:",
        "a.safetensors+",
        "a\0.safetensors",
        3,
        0.5,
        None,
        [],
        ["a", 3],
        {"a": "x"},
        {"a": True},
        [("a", float("nan"))],
        "hf://me/a.safetensors",
        "a.safetensors:1e999",
        b"a.safetensors",
        [b"a.safetensors"],
        {},
        {"a": 10**400},
        [("a", 10**400)],
        [("a.safetensors:1e200", 1e200)],
        ["a", None],
        "a\n.safetensors:x",
        "\ud800.safetensors",
        "x" * 300,
        "x" * 5000 + ".safetensors",
        "x" * 20_000,
        ENDLESS,
    ],
)
def test_bad_references_are_refused_in_one_line(spec: Any) -> None:
    with pytest.raises(AftError) as caught:
        load(spec)
    assert str(caught.value).isprintable()


def test_python_forms(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    booster = saved(path)
    assert parse(path) == [Reference(str(path))]
    assert parse({str(path): 0.5}) == [Reference(str(path), 0.5)]
    assert parse([str(path), (booster, 2)]) == [Reference(str(path)), Reference(booster, 2.0)]
    assert parse([f"{path}:0.5", f"{path}"]) == [Reference(str(path), 0.5), Reference(str(path))]
    assert parse({f"{path}:0.5": 0.5}) == [Reference(str(path), 0.25)]


def test_one_reference_keeps_the_identity_of_its_booster(tmp_path: Path) -> None:
    booster = saved(tmp_path / "a.safetensors")
    loaded = load(f"{tmp_path}/a.safetensors:0.5", scale=3)
    assert loaded.booster is not None
    assert (loaded.booster.sha256, loaded.strength) == (booster.sha256, 1.5)


def test_several_references_are_mixed(tmp_path: Path) -> None:
    saved(tmp_path / "a.safetensors", 1.0)
    saved(tmp_path / "b.safetensors", 10.0)
    mixed = load(f"{tmp_path}/a.safetensors:3+{tmp_path}/b.safetensors:-0.1", scale=0.5)
    assert mixed.strength == 0.5 and mixed.booster is not None
    torch.testing.assert_close(mixed.booster.tensors["layers.1.vector"], torch.full((4,), 2.0))


def test_missing_files_and_names_say_what_to_give() -> None:
    with pytest.raises(BoosterError, match=r"nowhere\.safetensors: no such booster file"):
        load("nowhere.safetensors")
    with pytest.raises(
        BoosterError, match=r"reasoning: no such booster; give the path of a .safetensors file or a name"
    ):
        load("reasoning")


def test_names_are_what_the_user_typed_without_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").mkdir()
    for name in ("x/a", "b"):
        saved(tmp_path / f"{name}.safetensors")
    fetched = hub.Fetched(hub.Address("owner/repo", "a.safetensors"), "", tmp_path / "b.safetensors", None)
    monkeypatch.setattr(hub, "fetch", lambda address: fetched)
    booster = Booster.static({1: torch.ones(4)})
    named = {
        f"{tmp_path}/x/a.safetensors:0.5": "a.safetensors:0.5",
        f"{tmp_path}/x/a.safetensors:0.5+{tmp_path}/b.safetensors": "a.safetensors:0.5+b.safetensors",
        "hf://owner/repo/a.safetensors": "hf://owner/repo/a.safetensors",
    }
    assert [load(text).name for text in named] == list(named.values())
    assert load(booster).name == f"booster {booster.sha256[:12]}"
    assert load([(booster, 2)]).name == f"booster {booster.sha256[:12]}:2"


def test_mixtures_are_longer_than_the_name_of_a_file(tmp_path: Path) -> None:
    names = [f"{tmp_path}/{letter * 60}.safetensors" for letter in "abcdefgh"]
    text = "+".join(f"{name}:0.5" for name in names)
    assert len(text) > 255 and parse(text) == [Reference(name, 0.5) for name in names]
    for name in names:
        saved(Path(name))
    mixed = load(text).booster
    assert mixed is not None
    torch.testing.assert_close(mixed.tensors["layers.1.vector"], torch.full((4,), 4.0))


def test_paths_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    with pytest.raises(BoosterError, match=r"loop\.safetensors: cannot be read \(Too many levels"):
        load(f"{tmp_path}/loop.safetensors")
    stat = os.stat

    def closed(path: Any, *args: Any, **options: Any) -> Any:  # the superuser may look everywhere
        if "closed" in str(path):
            raise PermissionError(13, "Permission denied")
        return stat(path, *args, **options)

    monkeypatch.setattr(os, "stat", closed)
    with pytest.raises(BoosterError, match=r"closed/a\.safetensors: cannot be read \(Permission denied\)"):
        load(f"{tmp_path}/closed/a.safetensors:2")
    with pytest.raises(BoosterError, match=r"closed/a: no such booster"):
        load(f"{tmp_path}/closed/a")


def test_the_scale_is_a_finite_number(tmp_path: Path) -> None:
    saved(tmp_path / "a.safetensors")
    for text, scale in ((f"{tmp_path}/a.safetensors", float("nan")), (f"{tmp_path}/a.safetensors:1e200", 1e200)):
        with pytest.raises(ReferenceSyntaxError, match="not a finite number"):
            load(text, scale)


def test_lists_of_boosters_and_of_pairs(tmp_path: Path) -> None:
    booster, path = saved(tmp_path / "a.safetensors"), tmp_path / "a.safetensors"
    assert parse([path, booster]) == [Reference(str(path)), Reference(booster)]
    assert parse([[path, 0.5], [booster, path]]) == [
        Reference(str(path), 0.5),
        Reference(booster),
        Reference(str(path)),
    ]
