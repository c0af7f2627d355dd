"""How the text of an option becomes a value, and how what cannot be understood is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from aft_harness.boosters.layers import Layers
from aft_harness.cli.values import (
    LAYERS,
    LAYERS_OR_AUTO,
    SLICE,
    OutputFile,
    PlainTexts,
    by_task,
    count,
    in_folder,
    overwrite_option,
    positive,
    refuse_existing,
)
from aft_harness.slices import Slice


def test_values_are_read_by_the_library() -> None:
    assert LAYERS.convert("4-8", None, None) == Layers("4-8")
    assert LAYERS_OR_AUTO.convert("1-", None, None) == Layers("1-")
    assert LAYERS_OR_AUTO.convert("auto", None, None) == "auto"
    assert SLICE.convert("3:9", None, None) == Slice(3, 9)
    # Click converts defaults and values of a context once more.
    assert SLICE.convert(Slice(3, 9), None, None) == Slice(3, 9)


@pytest.mark.parametrize(
    ("kind", "text"),
    [(LAYERS, "auto"), (LAYERS, "8-4"), (LAYERS, ""), (LAYERS_OR_AUTO, "automatic"), (SLICE, "3"), (SLICE, "a:b")],
)
def test_what_the_library_cannot_read_is_a_bad_parameter(kind: Any, text: str) -> None:
    with pytest.raises(click.BadParameter, match=f"'{text}'") as error:
        kind.convert(text, None, None)
    assert error.value.exit_code == 2


def test_plain_texts_are_paragraphs_or_json_lines(tmp_path: Path) -> None:
    paragraphs, lines = tmp_path / "texts.txt", tmp_path / "texts.jsonl"
    paragraphs.write_text("\nOne text\nof two lines.\n\n \nAnother.\n\n\n")
    lines.write_text('{"text": "One\\n\\ntext", "id": 3}\n\n{"text": " Another. "}\n{"text": ""}\n')
    kind = PlainTexts()
    assert kind.convert(str(paragraphs), None, None) == ["One text\nof two lines.", "Another."]
    found = kind.convert(str(lines), None, None)
    assert found == ["One\n\ntext", "Another."] and kind.convert(found, None, None) is found


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"texts": "y"}', 'a.jsonl, line 2: not a JSON object with a string "text"'),
        ("a.jsonl", b"[1]", "a.jsonl, line 1: not a JSON object"),
        ("a.jsonl", b'{"text": 3}', "a.jsonl, line 1: not a JSON object"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl, line 1: not a JSON object"),
        ("a.txt", b"\xff\xfe", "a.txt: not a UTF-8 text file"),
        ("a.txt", b" \n\n", "a.txt: no texts"),
        ("missing.txt", None, "does not exist"),
    ],
)
def test_files_without_plain_texts_are_refused(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(click.BadParameter, match=reason):
        PlainTexts().convert(str(tmp_path / name), None, None)


def test_an_output_file_is_checked_before_it_is_written(tmp_path: Path) -> None:
    kind = OutputFile(".safetensors")
    assert kind.convert(str(tmp_path / "a.safetensors"), None, None) == tmp_path / "a.safetensors"
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "there.safetensors").touch()
    for name, reason in (
        ("a.pt", "the file name must end in .safetensors"),
        ("no/a.safetensors", "is not a writable folder"),
        ("folder.safetensors", "is a directory"),
        ("there.safetensors", "there.safetensors: file exists; use --overwrite to replace it"),
    ):
        with pytest.raises(click.BadParameter, match=reason):
            kind.convert(str(tmp_path / name), None, None)


@pytest.mark.parametrize(("present", "checked"), [("a.png", True), ("a.png", False), ("a.csv", False)])
def test_no_output_file_is_replaced_unasked(present: str, checked: bool, tmp_path: Path) -> None:
    @click.command()
    @click.option("--curves", type=OutputFile(checked=checked))
    @overwrite_option
    @click.pass_context
    def command(context: click.Context, curves: Path) -> None:
        if not checked:
            refuse_existing(context, curves, curves.with_suffix(".csv"))
        click.echo(curves.name)

    (tmp_path / present).touch()
    picture = str(tmp_path / "a.png")
    refused = CliRunner().invoke(command, ["--curves", picture])
    assert refused.exit_code == 2 and f"{present}: file exists; use --overwrite to replace it" in refused.stderr
    for words in (["--curves", picture, "--overwrite"], ["--overwrite", "--curves", picture]):
        assert CliRunner().invoke(command, words).stdout == "a.png\n"
    assert CliRunner().invoke(command, ["--curves", "/dev/null"]).exit_code == 0


def test_a_file_needs_its_folder(tmp_path: Path) -> None:
    in_folder("--to", None)
    in_folder("--to", tmp_path / "a.csv")
    with pytest.raises(click.BadParameter, match="is not a folder") as error:
        in_folder("--to", tmp_path / "no" / "a.csv")
    assert error.value.param_hint == "'--to'"


def test_a_tasks_own_value_wins_over_that_of_all() -> None:
    names = ["a", "b", "c"]
    assert by_task("--limit", [], names, int) == {}
    assert by_task("--limit", ["b=1", "7"], names, int) == {"a": 7, "b": 1, "c": 7}
    assert by_task("--limit", ["7", "8"], names, int) == {"a": 8, "b": 8, "c": 8}
    assert by_task("--rows", ["b=test[0:3]"], names, str) == {"b": "test[0:3]"}
    for wrong, reason in ((["d=1"], "d=1: 'd' is not among --tasks"), (["a=x"], "a=x: invalid literal")):
        with pytest.raises(click.BadParameter, match=reason) as error:
            by_task("--limit", wrong, names, int)
        assert error.value.param_hint == "'--limit'"


def test_numbers_of_documents_and_weights() -> None:
    assert (count("0"), count("12"), positive("0.5")) == (0, 12, 0.5)
    for text in ("-1", "1.5", "", "x"):
        with pytest.raises(ValueError, match="expected a number of documents"):
            count(text)
    for text in ("0", "-1", "inf", "nan"):
        with pytest.raises(ValueError, match="expected a positive number"):
            positive(text)
