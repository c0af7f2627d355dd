from __future__ import annotations

from pathlib import Path

import pytest
from hub_cases import Hub, Repo, use
from library_cases import booster, row, written

from aft_harness.boosters import catalogue
from aft_harness.errors import HubError
from aft_harness.publish.library import listing
from aft_harness.publish.library.pull import pull
from aft_harness.publish.library.push import push

BOOSTER = booster()
GAIN = "acc +12.5 points [+7.5, +17.5] *"


@pytest.fixture
def hub(loopback_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(catalogue, "BUNDLED", tmp_path / "none")
    push(BOOSTER, "me/arc", leaderboards=[written(tmp_path / "l.csv", row(BOOSTER), row(BOOSTER, "toy_other", 0.2))])
    return loopback_hub


def test_what_was_pulled_is_listed(hub: Hub) -> None:
    pull("hf://me/arc")
    push(booster(2.0), "me/none", private=True)
    pull("hf://me/none@main")
    first, second = listing.local()
    assert first.cells[:5] == ["me/arc", "m/n", "1-2", "toy_choice", GAIN] and first.cells[5].endswith(" KB")
    commit = hub.repos["me/arc"].refs["main"]
    assert first.origin == f"hf://me/arc/arc.safetensors {commit[:7]}" and first.sha256 == BOOSTER.sha256
    assert (second.gain, second.to_json()["trained_on"]) == ("not evaluated", ("toy_choice",))
    head, *lines = listing.render([first, second]).splitlines()
    assert head.split()[:3] == ["name", "model", "layers"] and len({len(line) for line in (head, *lines)}) == 1


def test_a_damaged_booster_hides_no_other(hub: Hub) -> None:
    pull("hf://me/arc")
    pull("hf://me/arc", name="damaged")
    (catalogue.place("damaged") / "arc.safetensors").write_bytes(b"\x1b[31m")
    damaged, good = listing.local()
    assert damaged.cells[4].startswith("cannot be used: damaged: not a safetensors file") and good.gain == GAIN
    assert listing.render([damaged, good]).replace("\n", "").isprintable()


def test_the_hub_is_searched(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    push(booster(2.0), "me/other")
    hub.repos["me/model"] = Repo()
    hub.repos["me/model"].commit({"README.md": b"---\ntags: [other]\n---\n"})
    hub.repos["me/evil"] = Repo()
    evil = b'---\ntags: [aft-harness]\nbooster: {trained_on: 3, model: "\\e[31m"}\nmodel-index: [3]\n---\n'
    hub.repos["me/evil"].commit({"README.md": evil})
    found = {each.name: each for each in listing.remote()}
    assert sorted(found) == ["hf://me/arc", "hf://me/evil", "hf://me/other"]
    assert found["hf://me/arc"].cells == ["hf://me/arc", "m/n", "1-2", "toy_choice", GAIN, ""]
    assert found["hf://me/other"].gain == found["hf://me/evil"].gain == "not evaluated"
    assert listing.render(list(found.values())).replace("\n", "").isprintable()
    assert [each.name for each in listing.remote("oth")] == ["hf://me/other"]
    hub.repos["me/arc"].private = True
    monkeypatch.delenv("HF_TOKEN")
    assert "hf://me/arc" not in {each.name for each in listing.remote()}


def test_a_hub_that_cannot_be_asked_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
    with pytest.raises(
        HubError, match=r"boosters on the hub cannot be listed: http://127\.0\.0\.1:9 cannot be reached"
    ):
        list(listing.remote())


def test_the_gain_is_that_on_what_it_was_trained_on() -> None:
    claims = [row(BOOSTER, "a", 0.1, p_holm=0.5), row(BOOSTER, "b", 0.2)]
    assert listing.gain(claims, ["b", "a"]) == "acc +20.0 points [+15.0, +25.0] *"
    assert listing.gain(claims, ["c", "a"]) == "acc +10.0 points [+5.0, +15.0]"
    assert listing.gain(claims, ["c"]) == "not evaluated on it" and listing.gain([], ["c"]) == "not evaluated"
