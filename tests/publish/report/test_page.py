from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from report_cases import HOSTILE, Page, booster, decoded, everything_in, row, write_table

import aft_harness
from aft_harness.errors import FileError, TaskError
from aft_harness.publish.report import board
from aft_harness.publish.report.page import report
from aft_harness.results import leaderboard

TRANSFER = Path(__file__).parents[3] / "leaderboards" / "smollm2-135m-transfer.csv"


def page_of(*sources: Path, **options: Any) -> Page:
    output = sources[0].parent / "report.html"
    return Page(report(list(sources), output, overwrite=True, **options).read_text(encoding="utf-8"))


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    return everything_in(tmp_path / "work")


def test_nothing_from_outside_becomes_markup(everything: Path) -> None:
    harmless = Counter(tag for tag, _ in page_of(everything, samples=True).tags)
    page = page_of(everything, samples=True, title=HOSTILE)
    tags = Counter(tag for tag, _ in page.tags)
    assert tags["script"] == 3 and tags["img"] == 0 and tags["title"] >= 1
    assert {
        tag: count for tag, count in (tags - harmless).items() if tag != "wbr"
    } == {}  # a hostile title adds nothing
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcdoc", "action")]
    # All of it is there as text.
    assert HOSTILE.replace("\u2028", " ").replace("\u202e", " ") in page.text
    assert page.data["documents"][0]["documents"][0]["prompt"] == HOSTILE
    assert "49" not in re.findall(r"\{\{.*?\}\}", page.text) and "{{ 7*7 }}" in page.text
    assert "\u202e" not in page.text and "\u2028" not in page.text


def test_the_page_asks_nothing_of_any_network(everything: Path) -> None:
    page = page_of(everything, samples=True)
    for tag, attributes in page.tags:
        for name in ("src", "srcset", "href", "data", "poster", "xlink:href", "ping", "background"):
            if value := attributes.get(name):
                assert value.startswith("#") or (tag, value) == ("link", "data:,"), (tag, name, value)
    assert not re.search(r"url\(|@import|expression\(", page.scripts["style"])
    assert not re.search(
        r"fetch\(|XMLHttpRequest|WebSocket|import\(|eval\(|innerHTML|insertAdjacent", page.scripts["script"]
    )


def test_the_policy_allows_this_style_and_this_script_alone(everything: Path) -> None:
    page = page_of(everything)
    ((_, meta),) = [(tag, found) for tag, found in page.tags if found.get("http-equiv") == "Content-Security-Policy"]
    allowed = dict(part.split(" ", 1) for part in str(meta["content"]).split("; "))
    assert allowed.pop("default-src") == allowed.pop("base-uri") == allowed.pop("form-action") == "'none'"
    for name, element in (("style-src", "style"), ("script-src", "script")):
        digest = hashlib.sha256(page.scripts[element].encode()).digest()
        assert allowed.pop(name) == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert allowed == {"img-src": "data:"}
    tags = [tag for tag, _ in page.tags]
    assert tags.index("meta") < tags.index("style") and str(page.tags).index("http-equiv") < str(page.tags).index(
        "'style'"
    )


def test_every_section_is_named_and_every_id_is_there_once(everything: Path) -> None:
    page = page_of(everything, samples=True)
    ids = Counter(attributes["id"] for _, attributes in page.tags if attributes.get("id"))
    assert not [name for name, count in ids.items() if count > 1]
    links = {str(attributes["href"])[1:] for tag, attributes in page.tags if tag == "a"}
    sections = {attributes["id"] for tag, attributes in page.tags if tag == "section"}
    assert links == sections | {"main"} and len(sections) == 9
    script = page.scripts["script"]
    assert set(re.findall(r'at\("([\w-]+)"\)', script)) <= set(ids), "the script asks for an id that the page lacks"


def test_numbers_are_those_of_the_committed_study() -> None:
    frame = leaderboard.load(TRANSFER)
    page = Page(_rendered(TRANSFER))
    corrected = frame[frame["p_holm"].notna()]
    significant = corrected[corrected["p_holm"] < 0.05]
    better = significant["delta"] * significant["metric"].map(lambda metric: -1 if metric == "bits_per_byte" else 1) > 0
    gains, losses = int(better.sum()), int((~better).sum())
    rest = len(corrected) - gains - losses
    assert f"{gains} gains and {losses} losses in {len(corrected)} comparisons; {rest} cannot be told" in page.text
    data = page.data["board"]
    assert data["count"] == len(frame)
    outcomes = Counter(decoded(data["outcomes"], len(frame)))
    assert outcomes == {"gain": gains, "loss": losses, "open": rest, "none": len(frame) - len(corrected)}
    # The correction over one table is that table's own.
    held = [float(text) for text in decoded(page.details["p_holm"], len(frame)) if text]
    assert sorted(held) == pytest.approx(sorted(corrected["p_holm"]), rel=1e-5)
    cells = [attributes for tag, attributes in page.tags if tag == "button" and "data-rows" in attributes]
    behind = Counter(len(str(each["data-rows"]).split()) for each in cells)
    keys = ["booster", "trained_n", "objective", "strength", "task", "num_fewshot", "n"]
    expected = frame.groupby(keys, dropna=False).size()
    assert len(cells) == len(expected) and behind == Counter(expected.tolist())


def _rendered(source: Path) -> str:
    from aft_harness.publish.report.page import render
    from aft_harness.publish.report.sources import read

    return render(read([source]), "title", [source.name])


def test_readers_without_scripts_see_the_first_rows(tmp_path: Path) -> None:
    rows = [row(task=f"t{place}", p_value=place / 1000, p_holm=place / 1000) for place in range(board.STATIC_ROWS + 20)]
    page = page_of(write_table(tmp_path / "t.csv", rows))
    lines = [attributes for tag, attributes in page.tags if tag == "td" and attributes.get("class") == "c-task"]
    assert len(lines) == board.STATIC_ROWS
    assert f"The first {board.STATIC_ROWS} of {len(rows)} rows" in page.text


def test_the_same_sources_make_the_same_file(everything: Path, tmp_path: Path) -> None:
    first, second = (report(everything, tmp_path / name, samples=True).read_bytes() for name in ("a.html", "b.html"))
    assert first == second
    assert str(tmp_path).encode() not in first  # no path, only names


def test_a_file_that_exists_is_kept(tmp_path: Path) -> None:
    source = write_table(tmp_path / "t.csv", [row()])
    output = tmp_path / "r.html"
    output.write_text("mine")
    with pytest.raises(FileError, match=r"r\.html: file exists"):
        report(source, output)
    with pytest.raises(TaskError, match="empty"):
        report(write_table(tmp_path / "empty.csv", []), output, overwrite=True)
    assert output.read_text() == "mine"
    assert report(source, output, overwrite=True) == output and output.read_text().startswith("<!doctype html>")


def test_curves_or_a_booster_alone_make_a_page(tmp_path: Path) -> None:
    pd.DataFrame({"step": [1, 2], "epoch": [1, 1], "loss": [2.0, 1.0]}).to_csv(tmp_path / "loss.csv")
    booster().save(tmp_path / "mine.safetensors")
    page = page_of(tmp_path / "loss.csv", tmp_path / "mine.safetensors")
    assert {attributes["id"] for tag, attributes in page.tags if tag == "section"} == {
        "summary",
        "training",
        "boosters",
    }
    assert "nothing is claimed" in page.text and page.data["board"] is None


def test_samples_are_there_on_request_only(everything: Path) -> None:
    assert page_of(everything).data["documents"] == []
    (found,) = page_of(everything, samples=True).data["documents"]
    assert (found["gained"], found["lost"]) == (1, 0)


def test_a_report_that_has_no_samples_says_how_they_are_made(tmp_path: Path) -> None:
    assert "--log_samples" in page_of(write_table(tmp_path / "t.csv", [row()]), samples=True).text


def test_python_offers_the_command() -> None:
    assert aft_harness.report is report
