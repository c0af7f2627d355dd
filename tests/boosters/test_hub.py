"""Addresses on the hub, and boosters that are fetched from a real HTTP server on loopback."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
import torch
from hub_cases import Hub, Repo, use
from huggingface_hub import constants

from aft_harness.boosters import references
from aft_harness.boosters.booster import Booster
from aft_harness.boosters.hub import Address, fetch
from aft_harness.errors import BoosterError, HubError, ReferenceSyntaxError

ADDRESS = "hf://me/arc/arc.safetensors"
BOOSTER = Booster.static({1: torch.ones(4)})
OTHER = Booster.static({1: torch.zeros(4)})


def data(tmp_path: Path, booster: Booster = BOOSTER) -> bytes:
    booster.save(tmp_path / "x.safetensors")
    return (tmp_path / "x.safetensors").read_bytes()


def card(booster: Booster = BOOSTER, file: str = "arc.safetensors") -> bytes:
    return f"---\nbooster: {{file: {file}, sha256: {booster.sha256}}}\n---\nText.\n".encode()


@pytest.fixture
def hub(loopback_hub: Hub, tmp_path: Path) -> Hub:
    """A hub with one booster and its card."""
    loopback_hub.repos["me/arc"] = Repo()
    loopback_hub.repos["me/arc"].commit({"arc.safetensors": data(tmp_path), "README.md": card()})
    return loopback_hub


def refused(address: str = ADDRESS) -> str:
    """The line that says why a booster cannot be had."""
    with pytest.raises(BoosterError) as caught:
        Booster.load(address)
    text = str(caught.value)
    assert text.isprintable() and text.startswith(address.partition("@")[0])
    return text


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def cached(tmp_path: Path) -> list[str]:
    """The booster files in the cache, finished or not."""
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if "safetensors" in path.name)


@pytest.mark.parametrize(
    ("text", "whole", "parts"),
    [
        ("hf://me/arc/a.safetensors", True, ("me/arc", "a.safetensors", None)),
        ("hf://Me/arc.v2/sub/dir/a+b.safetensors@v1", True, None),
        ("hf://Me/arc.v2/sub/dir/ab.safetensors@refs/pr/1", True, ("Me/arc.v2", "sub/dir/ab.safetensors", "refs/pr/1")),
        ("hf://me/arc", False, ("me/arc", None, None)),
        ("hf://me/arc@v1.0", False, ("me/arc", None, "v1.0")),
        ("hf://me/arc", True, None),
        ("hf://me", False, None),
        ("hf://me/../a.safetensors", True, None),
        ("hf://../arc/a.safetensors", True, None),
        ("hf://me/arc/../a.safetensors", True, None),
        ("hf://me/arc/./a.safetensors", True, None),
        ("hf://me/arc//a.safetensors", True, None),
        ("hf://me/arc/sub\\..\\a.safetensors", True, None),
        ("hf://me/arc/.../a.safetensors", True, None),
        ("hf://me/arc/a.safetensors@../../../x", True, None),
        ("hf://me/arc/a.safetensors@", True, None),
        ("hf://me/arc/a.pt", True, None),
        ("hf://me--x/arc/a.safetensors", True, None),
        ("hf://-me/arc/a.safetensors", True, None),
        ("hf://me/arc./a.safetensors", True, None),
        ("hf://me/arc.git/a.safetensors", True, None),
        (f"hf://me/{'x' * 100}/a.safetensors", True, None),
        ("hf://me/arc/a\n.safetensors", True, None),
        ("hf://me/arc/a.safetensors@v\0", True, None),
    ],
)
def test_addresses(text: str, whole: bool, parts: tuple[str, str | None, str | None] | None) -> None:
    if parts is None:
        with pytest.raises(ReferenceSyntaxError) as caught:
            Address.parse(text, whole=whole)
        assert str(caught.value).isprintable()
    else:
        found = Address.parse(text, whole=whole)
        assert (found.repo, found.file, found.revision) == parts and str(found) == text


def test_a_booster_is_fetched_with_the_card_of_the_same_commit(hub: Hub, tmp_path: Path) -> None:
    variant = references.load(f"{ADDRESS}:0.5")
    assert variant.booster is not None and variant.booster.sha256 == BOOSTER.sha256
    assert (variant.strength, variant.name) == (0.5, f"{ADDRESS}:0.5")
    head = hub.repos["me/arc"].refs["main"]
    assert {path.split("/")[4] for _, path in hub.requests if path.endswith("README.md")} == {head}
    assert fetch(Address("me/arc")).address == Address("me/arc", "arc.safetensors")


def test_revisions_are_branches_tags_and_commits_and_may_move(hub: Hub, tmp_path: Path) -> None:
    repo = hub.repos["me/arc"]
    first = repo.refs["main"]
    repo.refs["v1"] = first
    repo.commit({"arc.safetensors": data(tmp_path, OTHER), "README.md": card(OTHER)})
    assert Booster.load(ADDRESS).sha256 == OTHER.sha256
    for revision in ("v1", first):
        assert Booster.load(f"{ADDRESS}@{revision}").sha256 == BOOSTER.sha256
    repo.refs["v1"] = repo.refs["main"]
    assert Booster.load(f"{ADDRESS}@v1").sha256 == OTHER.sha256
    assert refused(f"{ADDRESS}@v9").endswith("me/arc has no revision v9")


def test_a_revision_that_moves_meanwhile_mixes_no_commits(hub: Hub, tmp_path: Path) -> None:
    changed = data(tmp_path, OTHER)

    def move(path: str) -> None:
        if path.endswith("README.md") and len(hub.repos["me/arc"].commits) == 2:
            hub.repos["me/arc"].commit({"arc.safetensors": changed, "README.md": card(OTHER)})

    hub.on_request = move
    assert Booster.load(ADDRESS).sha256 == BOOSTER.sha256
    assert Booster.load(ADDRESS).sha256 == OTHER.sha256


def test_a_booster_that_is_not_its_cards_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.repos["me/arc"].commit({"arc.safetensors": data(tmp_path, OTHER)})
    assert f"not the booster of its card (sha256 {OTHER.sha256[:12]}; the card says {BOOSTER.sha256[:12]})" in refused()
    # A card about another file, or about none, has nothing to be compared with.
    for text in (card(file="other.safetensors"), b"# a model", b"---\ntags: [a]\n---\n"):
        hub.repos["me/arc"].commit({"README.md": text})
        assert Booster.load(ADDRESS).sha256 == OTHER.sha256


@pytest.mark.parametrize(
    "text",
    [
        b"---\nbooster: 3\n---\n",
        b"---\nbooster: {file: ../../x.safetensors, sha256: aa}\n---\n",
        b"---\nbooster: {file: arc.safetensors, sha256: aa}\n---\n",
        b"---\nbooster: [\n---\n",
        b"---\n- a\n---\n",
        b"---\n" + b"[" * 1000 + b"\n---\n",
        b"---\n1: 2\n---\nbooster",
        b"---\nx: \xff\n---\n",
    ],
)
def test_malformed_cards_are_refused(hub: Hub, text: bytes) -> None:
    hub.repos["me/arc"].commit({"README.md": text})
    assert refused().startswith(f"{ADDRESS}: README.md: ")
    with pytest.raises(BoosterError, match=r"^hf://me/arc: README\.md: "):
        fetch(Address("me/arc"))


def test_tokens_and_private_repositories(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub.repos["me/arc"].private = True
    assert Booster.load(ADDRESS).sha256 == BOOSTER.sha256
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "the hub does not accept the token; log in with `hf auth login` or set HF_TOKEN" in refused()
    monkeypatch.delenv("HF_TOKEN")
    assert "no repository me/arc, or a private one" in refused()
    assert "no repository me/nothing" in refused("hf://me/nothing/a.safetensors")


def test_missing_and_truncated_files(hub: Hub, tmp_path: Path) -> None:
    assert refused("hf://me/arc/b.safetensors").endswith("me/arc has no file b.safetensors")
    hub.truncated.add("arc.safetensors")
    assert "arc.safetensors cannot be fetched: the download is incomplete" in refused()
    assert cached(tmp_path) == []
    hub.truncated.clear()
    assert Booster.load(ADDRESS).sha256 == BOOSTER.sha256
    hub.repos["me/arc"].commit({"arc.safetensors": b"PK\x03\x04 no safetensors"})
    assert "not a safetensors file" in refused()


def test_too_large_files_are_not_downloaded(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from aft_harness.boosters import file_format

    monkeypatch.setattr(file_format, "SIZE_LIMIT", 10)
    assert "the limit is 10" in refused() and cached(tmp_path) == []


def test_without_a_network_the_cache_has_to_do(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    down = f"http://127.0.0.1:{closed_port()}"
    use(monkeypatch, down, tmp_path / "cache")
    begun = time.perf_counter()
    line = refused()
    assert time.perf_counter() - begun < 3  # nothing is tried again and again
    assert line.startswith(f"{ADDRESS}: {down} cannot be reached (") and "the cache does not have it" in line
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert refused() == f"{ADDRESS}: HF_HUB_OFFLINE is set, and the cache does not have it"
    use(monkeypatch, hub.url, tmp_path / "cache")
    assert Booster.load(ADDRESS).sha256 == BOOSTER.sha256
    asked = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Booster.load(ADDRESS).sha256 == BOOSTER.sha256 and len(hub.requests) == asked
    use(monkeypatch, down, tmp_path / "cache")
    assert Booster.load(ADDRESS).sha256 == BOOSTER.sha256


def test_a_hub_in_trouble(hub: Hub) -> None:
    hub.broken = 503
    assert "the hub answered with error 503" in refused() and "the cache does not have it" in refused()
    hub.broken = 403
    assert "the token does not allow this on me/arc" in refused()
    hub.broken = 0
    assert Booster.load(ADDRESS).sha256 == BOOSTER.sha256
    hub.broken = 503
    assert Booster.load(ADDRESS).sha256 == BOOSTER.sha256


def test_lists_of_very_many_documents_come_along(hub: Hub, tmp_path: Path) -> None:
    hashes = [f"{number:016x}" for number in range(2001)]
    many = Booster.static({1: torch.ones(4)}, {"documents": {"count": 2001, "normalisation": 2, "hashes": hashes}})
    many.save(tmp_path / "arc.safetensors")
    names = ("arc.safetensors", "arc.safetensors.documents.txt")
    hub.repos["me/many"] = Repo()
    hub.repos["me/many"].commit({name: (tmp_path / name).read_bytes() for name in names})
    assert len(Booster.load("hf://me/many/arc.safetensors").provenance.hashes) == 2001


def test_a_server_that_is_no_hub(monkeypatch: pytest.MonkeyPatch, hub: Hub, tmp_path: Path) -> None:
    use(monkeypatch, f"{hub.url}/somewhere", tmp_path / "cache")
    with pytest.raises(HubError) as caught:
        Booster.load(ADDRESS)
    assert str(caught.value).isprintable()


def test_a_full_disk_is_named_without_its_number(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> object:
        raise OSError(28, "No space left on device", "/cache/arc.safetensors")

    monkeypatch.setattr("huggingface_hub.HfApi.hf_hub_download", full)
    assert refused().endswith("cannot be fetched: /cache/arc.safetensors: No space left on device")
