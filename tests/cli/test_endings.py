"""How commands end: with their result, or with one line, whatever the command line, the files and the streams are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from aft_harness.cli import app, main

TABLE = Path(__file__).parents[2] / "leaderboards" / "smollm2-135m-transfer.csv"
SHOW = ["leaderboard", "show", str(TABLE), "--format", "csv"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("arguments", [SHOW, ["--help"], ["--version"]])
def test_output_that_cannot_be_written_is_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "aft_harness", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "Error: the output cannot be written (No space left on device)\n")


def test_a_reader_that_has_seen_enough_ends_a_command_quietly() -> None:
    command = [sys.executable, "-m", "aft_harness", *SHOW]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "/some/\x1bfile"), r"/some/\x1bfile: Permission denied"),
        (ConnectionError("nobody is there\r\nat all"), r"nobody is there\r\nat all"),
        (OSError(28, "No space left on device"), "the output cannot be written (No space left on device)"),
        (OSError(), "OSError"),
    ],
)
def test_an_error_of_the_system_is_one_line(monkeypatch: pytest.MonkeyPatch, error: OSError, line: str) -> None:
    from aft_harness.results import leaderboard

    def fail(path: Path) -> None:
        raise error

    monkeypatch.setattr(leaderboard, "load", fail)
    done = CliRunner().invoke(main, SHOW)
    assert (done.exit_code, done.stderr) == (1, f"Error: {line}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [*SHOW[:2], "\x1b[31m\x07.csv"],
        [*SHOW, "--sort", "\x1b[31m"],
        [*SHOW, "--task", "\x9b31m\u202e"],
        [*SHOW, "--\x1b[31m"],
        ["\x1b[31m"],
        ["compare", "\x1b[31m", "b", "--task", "\x1b[31m\n"],
        ["show", "\x1b]0;title\x07"],
    ],
)
def test_no_message_drives_the_terminal(arguments: list[str]) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code in (1, 2) and "Error: " in done.stderr
    assert all(line.isprintable() for line in done.output.split("\n")), done.output


def test_a_malformed_table_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_bytes(TABLE.read_bytes().replace(b"\nSmol", b'\n"\x1b', 1).replace(b'\n"Smol', b'\n"\x1b"', 1))
    done = CliRunner().invoke(main, ["leaderboard", "show", str(path)])
    assert done.exit_code == 1 and len(done.stderr.splitlines()) == 1 and "\x1b" not in done.stderr


def test_help_without_a_command_is_whole() -> None:
    done = CliRunner().invoke(main, [])
    assert done.exit_code == 2 and "Commands:\n" in done.output and app.__doc__
