"""A card and its rows agree, or the booster is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from library_cases import booster, row, written

from aft_harness.boosters import catalogue
from aft_harness.boosters.card_header import card_data
from aft_harness.demo import MODEL_NAME
from aft_harness.errors import AftError, BoosterError
from aft_harness.publish.library.publication import Publication, claimed, file_name
from aft_harness.publish.library.push import repository

BOOSTER = booster()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a repository holds."""
    rows = [row(BOOSTER), row(BOOSTER, "toy_other", 0.0, p_holm=1.0)]
    for name, content in repository(BOOSTER, "me/arc", rows=rows).files().items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def read(folder: Path) -> Publication:
    return Publication.read("it", BOOSTER, folder / "README.md", folder / "results.csv")


def test_claims_are_the_rows_with_a_corrected_p_value(folder: Path) -> None:
    assert [claim["task"] for claim in read(folder).claims] == ["toy_choice", "toy_other"]
    nothing = Publication.read("it", BOOSTER, None, None)
    assert nothing.rows == () and nothing.claims == []


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("value: 0.625", "value: 0.725", r"it: the card claims acc 0\.725 on toy_choice, which is not in results\.csv"),
        ("value: 0.625", "value: .nan", "the card claims acc nan"),
        ("type: toy_choice", "type: toy_hard", "the card claims acc 0.625 on toy_hard"),
        ("value: 0.625", "value: [1]", r"README\.md: mal"),
        ("    metrics:", "    other:", r"README\.md: mal|the card claims"),
    ],
)
def test_a_card_that_claims_more_than_its_rows_is_refused(folder: Path, old: str, new: str, reason: str) -> None:
    card = folder / "README.md"
    card.write_text(card.read_text().replace(old, new))
    if "mal" in reason:  # what cannot be read claims nothing
        try:
            assert [claim["task"] for claim in read(folder).claims] == ["toy_choice", "toy_other"]
        except BoosterError as error:
            assert str(error).startswith("it: ")
        return
    with pytest.raises(BoosterError, match=reason):
        read(folder)


def test_rows_about_other_boosters_do_not_count(folder: Path) -> None:
    other = booster(2.0)
    written(folder / "other.csv", row(other))
    (folder / "other.csv").replace(folder / "results.csv")
    with pytest.raises(BoosterError, match=r"which is not in results\.csv"):
        read(folder)


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"\xff\xfe", b"model\n"])
def test_malformed_results_are_refused(folder: Path, content: bytes) -> None:
    (folder / "results.csv").write_bytes(content)
    with pytest.raises(AftError, match=r"^it: .*results\.csv") as caught:
        read(folder)
    assert str(caught.value).isprintable()


def test_names_that_are_unknown_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFT_HOME", str(tmp_path))
    with pytest.raises(BoosterError, match="nothing: no such booster"):
        Publication.open("nothing")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("arc", "arc.safetensors"),
        ("arc.safetensors", "arc.safetensors"),
        ("../../a b/c d.safetensors", "c-d.safetensors"),
        ("été.safetensors", "t.safetensors"),
        ("..", "booster.safetensors"),
        (".hidden.safetensors", "hidden.safetensors"),
    ],
)
def test_names_of_files(text: str, expected: str) -> None:
    assert file_name(text) == expected


def test_what_comes_with_the_package_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFT_HOME", str(tmp_path))
    bundled = [entry for entry in catalogue.entries() if entry.bundled]
    assert {"smollm2-135m-arc-easy", "smollm2-135m-gsm8k-easy"} <= {entry.name for entry in bundled}
    for entry in bundled:
        published = Publication.open(entry.name)
        assert sorted(path.name for path in entry.folder.iterdir()) == sorted(
            ["README.md", "results.csv", f"{entry.name}.safetensors"]
        )
        assert entry.file.stat().st_size < 100_000 and len(published.claims) == len(claimed(card_data(published.card)))
        provenance = published.booster.provenance
        assert provenance.base_model is not None and provenance.base_model.name == MODEL_NAME
        assert provenance.trained_on[0] in {claim["task"] for claim in published.claims}
        assert any(claim["transfer"] for claim in published.claims) and "bits_per_byte" in published.card
        assert str(Path.cwd()) not in published.card and str(Path.home()) not in published.card
