"""Pushing to a real HTTP server on loopback: one commit, all rows, and nobody else's repository."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_cases import Hub, Repo, use
from huggingface_hub import ModelCard, constants
from library_cases import booster, row, written

import aft_harness
from aft_harness.boosters.booster import Booster
from aft_harness.errors import AftError, BoosterError, HubError, TaskError
from aft_harness.publish.library.push import push, repository
from aft_harness.results import leaderboard, table

BOOSTER = booster()


def head(hub: Hub, repo: str = "me/arc", ref: str = "main") -> dict[str, bytes]:
    """The files of a repository's last commit."""
    found = hub.repos[repo]
    return found.commits[found.refs[ref]]


def rows(hub: Hub, tmp_path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    (tmp_path / "found.csv").write_bytes(head(hub)["results.csv"])
    found = table.to_rows(leaderboard.load(tmp_path / "found.csv"))
    return {(each["task"], each["metric"]): each for each in found}


@pytest.mark.parametrize("lfs", [(), (".safetensors",)])
def test_a_booster_its_card_and_its_rows_come_back(loopback_hub: Hub, tmp_path: Path, lfs: tuple[str, ...]) -> None:
    loopback_hub.lfs = lfs
    board = written(tmp_path / "l.csv", row(BOOSTER), row(booster(2.0), "toy_other"))
    done = push(BOOSTER, "me/arc", leaderboards=[board])
    assert (done.address, done.claims, done.kept) == ("hf://me/arc/arc.safetensors", 1, 0)
    assert done.commit == loopback_hub.repos["me/arc"].refs["main"] and done.url.endswith(f"/commit/{done.commit}")
    assert sorted(head(loopback_hub)) == ["README.md", "arc.safetensors", "results.csv"]
    assert len(loopback_hub.repos["me/arc"].commits) == 2  # one commit, and the empty repository
    assert aft_harness.Booster.load(done.address).sha256 == BOOSTER.sha256
    assert list(rows(loopback_hub, tmp_path)) == [("toy_choice", "acc")]
    assert bool(loopback_hub.objects) == bool(lfs)


def test_the_method_of_a_booster(loopback_hub: Hub, tmp_path: Path) -> None:
    url = aft_harness.Booster.static(
        {1: BOOSTER.tensors["layers.1.vector"]}, {"base_model": {"name": "m/n"}}
    ).push_to_hub("me/other", private=True, file="x")
    assert url.startswith(f"{loopback_hub.url}/me/other/commit/")
    assert loopback_hub.repos["me/other"].private and "x.safetensors" in head(loopback_hub, "me/other")


def test_rows_that_were_published_are_kept(loopback_hub: Hub, tmp_path: Path) -> None:
    bad = row(BOOSTER, "toy_worse", -0.1)
    push(BOOSTER, "me/arc", leaderboards=[written(tmp_path / "a.csv", bad, row(BOOSTER))])
    new = row(BOOSTER, steered=0.63, delta=0.13, date="2026-11-27")
    done = push(BOOSTER, "me/arc", leaderboards=[written(tmp_path / "b.csv", new)])
    assert (done.claims, done.kept) == (2, 1)
    found = rows(loopback_hub, tmp_path)
    assert found["toy_worse", "acc"]["delta"] == -0.1 and found["toy_choice", "acc"]["delta"] == 0.13
    assert "worse: acc 50.0% to 40.0%" in head(loopback_hub)["README.md"].decode()
    # Another version of the booster has rows of its own.
    changed = booster(3.0)
    push(changed, "me/arc", leaderboards=[written(tmp_path / "c.csv", row(changed, "toy_other"))])
    assert list(rows(loopback_hub, tmp_path)) == [("toy_other", "acc")]
    assert Booster.load("hf://me/arc/arc.safetensors").sha256 == changed.sha256


def test_corrected_p_values_stay_those_of_their_leaderboards(loopback_hub: Hub, tmp_path: Path) -> None:
    others = [row(booster(float(number)), f"toy_{number}", p_value=0.5) for number in range(2, 12)]
    board = written(tmp_path / "l.csv", row(BOOSTER, p_value=0.004), *others)
    alone = written(tmp_path / "m.csv", row(BOOSTER, p_value=0.004))
    push(BOOSTER, "me/arc", leaderboards=[board, alone])
    # Of eleven tests in the first, of one in the second: not that of the smaller table.
    assert rows(loopback_hub, tmp_path)["toy_choice", "acc"]["p_holm"] == pytest.approx(0.044)


def test_what_others_wrote_on_the_card_is_kept(loopback_hub: Hub, tmp_path: Path) -> None:
    push(BOOSTER, "me/arc")
    text = head(loopback_hub)["README.md"].decode()
    loopback_hub.repos["me/arc"].commit({"README.md": f"{text}\nMy notes.\n".encode(), "notes.txt": b"mine"})
    push(BOOSTER, "me/arc", leaderboards=[written(tmp_path / "a.csv", row(BOOSTER))])
    again = head(loopback_hub)["README.md"].decode()
    assert again.rstrip().endswith("My notes.") and "toy_choice" in again and head(loopback_hub)["notes.txt"] == b"mine"


def test_branches(loopback_hub: Hub, tmp_path: Path) -> None:
    push(BOOSTER, "me/arc")
    done = push(booster(2.0), "me/arc", revision="trial")
    assert done.address == "hf://me/arc/arc.safetensors@trial"
    assert Booster.load(done.address).sha256 == booster(2.0).sha256
    assert Booster.load("hf://me/arc/arc.safetensors").sha256 == BOOSTER.sha256


def test_repositories_of_something_else_are_left_alone(loopback_hub: Hub) -> None:
    for files in ({"README.md": b"# My model"}, {"config.json": b"{}"}, {"README.md": b"---\ntags: [x]\n---\n"}):
        loopback_hub.repos["me/arc"] = Repo()
        before = loopback_hub.repos["me/arc"].commit(files)
        with pytest.raises(BoosterError, match="a repository of something else"):
            push(BOOSTER, "me/arc")
        assert loopback_hub.repos["me/arc"].refs["main"] == before
    loopback_hub.repos["me/arc"].commit({"README.md": b"---\nbooster: 3\n---\n"})
    with pytest.raises(BoosterError, match=r"^me/arc: README\.md: booster is not a mapping"):
        push(BOOSTER, "me/arc")
    push(BOOSTER, "me/new")
    with pytest.raises(BoosterError, match=r"me/new: has the booster new\.safetensors, and a repository has one"):
        push(BOOSTER, "me/new", file="other.safetensors")


def wrong_token(hub: Hub, patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setenv("HF_TOKEN", "hf_wrong")


def no_token(hub: Hub, patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.delenv("HF_TOKEN")


def no_network(hub: Hub, patch: pytest.MonkeyPatch, folder: Path) -> None:
    use(patch, "http://127.0.0.1:9", folder / "cache")


def offline(hub: Hub, patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setattr(constants, "HF_HUB_OFFLINE", True)


def changed_meanwhile(hub: Hub, patch: pytest.MonkeyPatch, folder: Path) -> None:
    hub.repos["me/arc"] = Repo()
    hub.on_request = lambda path: "preupload" in path and hub.repos["me/arc"].commit({"x": b"x"})


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (wrong_token, "the hub does not accept the token"),
        (no_token, "the hub does not accept the token; log in with `hf auth login` or set HF_TOKEN"),
        (no_network, "http://127.0.0.1:9 cannot be reached"),
        (offline, "HF_HUB_OFFLINE is set"),
        (changed_meanwhile, "me/arc was changed at the same time; rerun the same command"),
    ],
)
def test_faults_are_one_line(
    loopback_hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: Callable[..., None], reason: str
) -> None:
    fault(loopback_hub, monkeypatch, tmp_path)
    with pytest.raises(HubError) as caught:
        push(BOOSTER, "me/arc")
    assert str(caught.value).startswith("me/arc: ") and reason in str(caught.value) and str(caught.value).isprintable()
    assert not any(
        "arc.safetensors" in files for repo in loopback_hub.repos.values() for files in repo.commits.values()
    )


def test_other_peoples_names_and_branches(loopback_hub: Hub) -> None:
    with pytest.raises(HubError, match="you/arc: the token does not allow this on you/arc"):
        push(BOOSTER, "you/arc")
    for repo in ("arc", "me/../arc", "me/arc/x", "../me", "me/--"):
        with pytest.raises(AftError, match="is not the name of a repository"):
            push(BOOSTER, repo)
    with pytest.raises(AftError, match="is not a revision"):
        push(BOOSTER, "me/arc", revision="../main")
    assert not [path for method, path in loopback_hub.requests if method == "POST" and "create" not in path]


def test_leaderboards_without_a_row_about_it_are_refused(tmp_path: Path) -> None:
    board = written(tmp_path / "l.csv", row(booster(2.0)))
    with pytest.raises(TaskError, match=rf"l\.csv: no row is about this booster \(sha256 {BOOSTER.sha256[:12]}\)"):
        repository(BOOSTER, "me/arc", leaderboards=[board])
    with pytest.raises(AftError, match=r"nowhere\.csv: no such file"):
        repository(BOOSTER, "me/arc", leaderboards=[tmp_path / "nowhere.csv"])


def test_the_card_is_known_without_a_network() -> None:
    text = repository(BOOSTER, "me/arc").files()["README.md"].decode()
    assert ModelCard(text).data["booster"]["sha256"] == BOOSTER.sha256
