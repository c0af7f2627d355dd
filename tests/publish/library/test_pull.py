"""Pulling from a real HTTP server on loopback: whole or not at all, and only the booster of the card."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_cases import Hub, Repo, environment, use
from huggingface_hub import constants
from library_cases import booster, row, written

from aft_harness.boosters import catalogue, references
from aft_harness.boosters.booster import Booster
from aft_harness.errors import AftError, BoosterError
from aft_harness.publish.library.pull import pull
from aft_harness.publish.library.push import push

BOOSTER = booster()
FILES = ["README.md", "arc.safetensors", "origin.json", "results.csv"]


@pytest.fixture
def hub(loopback_hub: Hub, tmp_path: Path) -> Hub:
    """A hub with one published booster."""
    push(BOOSTER, "me/arc", leaderboards=[written(tmp_path / "l.csv", row(BOOSTER))])
    return loopback_hub


def library(tmp_path: Path) -> dict[str, list[str]]:
    """The files of the library, by folder; whatever is half written would be among them."""
    folder = tmp_path / "aft" / "library"
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return {path.name: sorted(each.name for each in path.iterdir()) for path in found if path.name != ".lock"}


def test_a_name_is_what_was_pulled(hub: Hub, tmp_path: Path) -> None:
    done = pull("hf://me/arc")
    commit = hub.repos["me/arc"].refs["main"]
    assert (done.name, done.commit, done.changed) == ("me/arc", commit, True)
    assert library(tmp_path) == {"me--arc": FILES}
    place = catalogue.place("me/arc")
    head = hub.repos["me/arc"].commits[commit]
    assert all((place / name).read_bytes() == head[name] and not (place / name).is_symlink() for name in head)
    origin = json.loads((place / "origin.json").read_text())
    assert origin["address"] == "hf://me/arc/arc.safetensors" and origin["booster_sha256"] == BOOSTER.sha256
    assert references.load("me/arc:0.5").booster is not None
    hub.broken = 500  # from here on nothing is asked
    assert Booster.load("me/arc").sha256 == BOOSTER.sha256


def test_names_and_forms(hub: Hub, tmp_path: Path) -> None:
    for source, name in (("hf://me/arc/arc.safetensors@main", None), ("me/arc", "mine"), ("me/arc@main", "too")):
        assert pull(source, name=name).changed
    assert [entry.name for entry in catalogue.entries() if not entry.bundled] == ["me/arc", "mine", "too"]
    assert not pull("mine").changed  # from where it came
    with pytest.raises(BoosterError, match="nothing: no booster of this name; give hf://owner/repo"):
        pull("nothing")
    for name in ("../x", "A", "a/b/c", "..", ".lock", "a--b", ""):
        with pytest.raises(AftError, match="cannot be a booster's name") as caught:
            pull("hf://me/arc", name=name or "/")
        assert str(caught.value).isprintable()
    assert set(library(tmp_path)) == {"me--arc", "mine", "too"}


def test_what_came_with_the_package_stays(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "BUNDLED", tmp_path / "bundled")
    (tmp_path / "bundled" / "own").mkdir(parents=True)
    BOOSTER.save(tmp_path / "bundled" / "own" / "own.safetensors")
    assert not pull("own").changed
    with pytest.raises(BoosterError, match="own: a booster of this name came with the package; choose another"):
        pull("hf://me/arc", name="own")


def test_another_booster_takes_no_name_unasked(hub: Hub, tmp_path: Path) -> None:
    pull("hf://me/arc@main")
    old = hub.repos["me/arc"].refs["main"]
    other = booster(2.0)
    push(other, "me/arc")
    new = hub.repos["me/arc"].refs["main"]
    line = f"me/arc: hf://me/arc/arc.safetensors@main moved from {old[:7]} to {new[:7]}, where it is another booster"
    with pytest.raises(BoosterError, match=line):
        pull("me/arc")
    assert Booster.load("me/arc").sha256 == BOOSTER.sha256
    assert pull("me/arc", overwrite=True).changed and Booster.load("me/arc").sha256 == other.sha256
    push(BOOSTER, "me/second")
    with pytest.raises(BoosterError, match=r"has another booster of this name, from hf://me/arc/arc\.safetensors@main"):
        pull("hf://me/second", name="me/arc")
    # A new card of the same booster is nothing that needs to be asked about.
    push(other, "me/arc", leaderboards=[written(tmp_path / "m.csv", row(other))])
    assert pull("me/arc").changed and (catalogue.place("me/arc") / "results.csv").read_text().count("\n") == 2


def test_a_damaged_entry_needs_to_be_overwritten(hub: Hub, tmp_path: Path) -> None:
    pull("hf://me/arc")
    (catalogue.place("me/arc") / "arc.safetensors").write_bytes(b"damaged")
    with pytest.raises(BoosterError, match="use --name, or --overwrite to replace it"):
        pull("hf://me/arc")
    assert pull("hf://me/arc", overwrite=True).changed and Booster.load("me/arc").sha256 == BOOSTER.sha256


def wrong_token(hub: Hub, patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setenv("HF_TOKEN", "hf_wrong")


def private(hub: Hub, patch: pytest.MonkeyPatch, folder: Path) -> None:
    hub.repos["me/arc"].private = True
    patch.delenv("HF_TOKEN")


def missing_file(hub: Hub, patch: pytest.MonkeyPatch, folder: Path) -> None:
    kept = {"README.md": hub.repos["me/arc"].commits[hub.repos["me/arc"].refs["main"]]["README.md"]}
    hub.repos["me/arc"].commit(kept, whole=True)


def no_card(hub: Hub, patch: pytest.MonkeyPatch, folder: Path) -> None:
    hub.repos["me/arc"].commit({"README.md": b"# Hello"})


def truncated(hub: Hub, patch: pytest.MonkeyPatch, folder: Path) -> None:
    hub.truncated.add("arc.safetensors")


def truncated_results(hub: Hub, patch: pytest.MonkeyPatch, folder: Path) -> None:
    hub.truncated.add("results.csv")


def another_booster(hub: Hub, patch: pytest.MonkeyPatch, folder: Path) -> None:
    booster(2.0).save(folder / "x.safetensors")
    hub.repos["me/arc"].commit({"arc.safetensors": (folder / "x.safetensors").read_bytes()})


def invented_claim(hub: Hub, patch: pytest.MonkeyPatch, folder: Path) -> None:
    text = hub.repos["me/arc"].commits[hub.repos["me/arc"].refs["main"]]["README.md"]
    hub.repos["me/arc"].commit({"README.md": text.replace(b"value: 0.625", b"value: 0.925")})


def no_rows(hub: Hub, patch: pytest.MonkeyPatch, folder: Path) -> None:
    hub.repos["me/arc"].commit({"results.csv": b"model,task\n"})


def no_network(hub: Hub, patch: pytest.MonkeyPatch, folder: Path) -> None:
    use(patch, "http://127.0.0.1:9", folder / "empty")


def offline(hub: Hub, patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(constants, "HF_HUB_OFFLINE", True)
    patch.setattr(constants, "HF_HUB_CACHE", str(folder / "empty"))


def gone(hub: Hub, patch: pytest.MonkeyPatch, folder: Path) -> None:
    del hub.repos["me/arc"]


def breaks_off(hub: Hub, patch: pytest.MonkeyPatch, folder: Path) -> None:
    hub.on_request = lambda path: path.endswith("arc.safetensors") and setattr(hub, "broken", 403)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (wrong_token, "the hub does not accept the token; log in with `hf auth login` or set HF_TOKEN"),
        (private, "no repository me/arc, or a private one; to read private ones, log in"),
        (missing_file, "the card names arc.safetensors, which the repository does not have"),
        (no_card, "its card names no booster; give the file: hf://me/arc/FILE.safetensors"),
        (truncated, "arc.safetensors cannot be fetched: the download is incomplete"),
        (truncated_results, "results.csv cannot be fetched: the download is incomplete"),
        (another_booster, "not the booster of its card"),
        (invented_claim, "the card claims acc 0.925 on toy_choice, which is not in results.csv"),
        (no_rows, "results.csv: not a leaderboard (column revision is missing)"),
        (no_network, "cannot be reached"),
        (offline, "HF_HUB_OFFLINE is set, and the cache does not have it"),
        (gone, "no repository me/arc"),
        (breaks_off, "the token does not allow this"),
    ],
)
def test_faults_are_one_line_and_leave_nothing(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: Callable[..., None], reason: str
) -> None:
    fault(hub, monkeypatch, tmp_path)
    with pytest.raises(BoosterError) as caught:
        pull("hf://me/arc")
    assert str(caught.value).startswith("hf://me/arc") and reason in str(caught.value)
    assert str(caught.value).isprintable()
    assert library(tmp_path) == {} and not list(tmp_path.rglob("*.incomplete"))


def test_revisions_that_are_not_there_and_files_that_are_not_the_cards(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(BoosterError, match="hf://me/arc@v9: me/arc has no revision v9"):
        pull("hf://me/arc@v9")
    booster(2.0).save(tmp_path / "x.safetensors")
    hub.repos["me/arc"].commit({"x.safetensors": (tmp_path / "x.safetensors").read_bytes()})
    with pytest.raises(BoosterError, match=r"not the booster of the repository's card, which is arc\.safetensors"):
        pull("hf://me/arc/x.safetensors")
    hub.repos["me/bare"] = Repo()
    hub.repos["me/bare"].commit({"x.safetensors": (tmp_path / "x.safetensors").read_bytes()})
    with pytest.raises(BoosterError, match=r"no card names it; use vector=hf://me/bare/x\.safetensors"):
        pull("hf://me/bare/x.safetensors")
    assert Booster.load("hf://me/bare/x.safetensors").sha256 == booster(2.0).sha256


def test_a_card_leads_to_no_other_folder(hub: Hub, tmp_path: Path) -> None:
    text = hub.repos["me/arc"].commits[hub.repos["me/arc"].refs["main"]]["README.md"]
    for name in (b"../../../x.safetensors", b"/etc/x.safetensors", b"a/../../x.safetensors", b"x.pt"):
        hub.repos["me/arc"].commit({"README.md": text.replace(b"file: arc.safetensors", b"file: " + name)})
        with pytest.raises(BoosterError, match="names no file of a booster"):
            pull("hf://me/arc")
    hub.repos["me/arc"].commit({"README.md": text.replace(b"file: arc", b"file: sub/arc"), "sub/arc.safetensors": b""})
    with pytest.raises(BoosterError, match="not a safetensors file"):
        pull("hf://me/arc")
    assert library(tmp_path) == {}


def test_offline_what_is_in_the_cache_can_be_pulled(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pull("hf://me/arc")
    offline(hub, monkeypatch, tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert pull("hf://me/arc", name="again").changed and library(tmp_path)["again"] == FILES


def test_two_processes_pull_at_once(hub: Hub, tmp_path: Path) -> None:
    code = "import sys; from aft_harness.publish.library.pull import pull; sys.stdin.read(); pull('hf://me/arc')"
    command = [sys.executable, "-c", code]
    started = [
        subprocess.Popen(
            command, env=environment(hub.url, tmp_path), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.close()
    for process in started:
        assert process.stderr is not None
        assert process.wait() == 0, process.stderr.read()
        process.stderr.close()
    assert library(tmp_path) == {"me--arc": FILES} and Booster.load("me/arc").sha256 == BOOSTER.sha256
