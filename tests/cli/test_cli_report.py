"""`aft report`: a page of what is named, a line for what cannot be shown, and the line that other commands end with."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from cli_cases import aft, assert_refused

from aft_harness.cli.report import report_line

ROOT = Path(__file__).parents[2]
TRANSFER = ROOT / "leaderboards" / "smollm2-135m-transfer.csv"


def test_a_page_is_written_and_named(tmp_path: Path) -> None:
    output = tmp_path / "r.html"
    result = aft("report", TRANSFER, "-o", output, "--title", "My study")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{output} ({output.stat().st_size:,} bytes)\n"
    assert "<title>My study</title>" in output.read_text(encoding="utf-8")


def test_a_page_that_exists_is_replaced_on_request_only(tmp_path: Path) -> None:
    output = tmp_path / "r.html"
    output.write_text("mine")
    assert_refused(aft("report", TRANSFER, "-o", output), 2, "file exists; use --overwrite to replace it")
    assert output.read_text() == "mine"
    assert aft("report", TRANSFER, "-o", output, "--overwrite").exit_code == 0
    assert output.read_text().startswith("<!doctype html>")


def test_what_is_left_out_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "t.csv").write_bytes(TRANSFER.read_bytes())
    (tmp_path / "work" / "m.safetensors").write_text("x")
    result = aft("report", tmp_path / "work", "-o", tmp_path / "r.html")
    assert result.exit_code == 0 and result.stderr.startswith("left out: m.safetensors: not a safetensors file")
    assert aft("report", tmp_path / "work", "-o", tmp_path / "q.html", "--quiet").stderr == ""


@pytest.mark.parametrize(
    ("arguments", "exit_code", "reason"),
    [
        (["nowhere", "-o", "r.html"], 1, "nowhere: no such file or folder"),
        ([str(TRANSFER), "-o", "r.pdf"], 2, "r.pdf: the file name must end in .html"),
        ([str(TRANSFER), "-o", "nowhere/r.html"], 2, "nowhere is not a writable folder"),
        (["text.csv", "-o", "r.html"], 1, "text.csv: not a leaderboard"),
        ([str(TRANSFER)], 2, "Missing option '-o'"),
        (["-o", "r.html"], 2, "Missing argument"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    arguments: list[str], exit_code: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.csv").write_text("a,b\n1,2\n")
    assert_refused(aft("report", *arguments), exit_code, reason)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.csv"]


def test_tables_alone_need_no_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from aft_harness.cli import main
try:
    main(["report", {str(TRANSFER)!r}, "-o", {str(tmp_path / "r.html")!r}])
except SystemExit as ended:
    assert not ended.code
assert not set(sys.modules) & {{"torch", "transformers", "datasets"}}
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_line_can_be_typed_as_it_is() -> None:
    line = report_line(Path("my work"), Path("t.csv"), samples=True)
    said, _, command = line.partition(": ")
    assert said == "To look at the results"
    assert shlex.split(command) == ["aft", "report", "my work", "t.csv", "--samples", "-o", "report.html"]
