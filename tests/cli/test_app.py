"""How commands start and end: quick help, both spellings of options, and exit codes that mean something."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_cases import aft, assert_refused

from aft_harness import __version__, errors
from aft_harness.boosters import references


def test_help_needs_no_heavy_import() -> None:
    heavy = ("torch", "transformers", "lm_eval", "datasets", "pandas", "scipy", "numpy")
    commands = (["--help"], ["train", "--help"], ["show", "--help"], ["transfer", "--help"], ["sweep", "layers", "-h"])
    for words in commands:
        code = (
            "import sys\n"
            "from aft_harness.cli import main\n"
            f"try: main({words!r})\n"
            f"except SystemExit: print([name for name in {heavy!r} if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip().endswith("[]") and "Usage" in done.stdout, words


def test_every_command_has_help() -> None:
    listed = aft("--help").stdout
    for command in (
        *(
            "train",
            "evaluate",
            "generate",
            "import",
            "compare",
            "show",
            "mix",
            "transfer",
            "tasks",
            "demo",
            "demo-model",
        ),
        *("extract mean-difference", "extract function-vector", "sweep layers", "sweep strengths"),
        *("leaderboard add", "leaderboard show"),
    ):
        shown = aft(*command.split(), "--help")
        assert shown.exit_code == 0 and shown.stdout.startswith(f"Usage: main {command}"), shown.output
        assert command.split()[0] in listed


def test_the_version_is_that_of_the_package() -> None:
    assert aft("--version").stdout.strip() == f"aft, version {__version__}"


def test_tasks_prints_a_folder_for_include_path_and_lists_what_it_holds() -> None:
    result = aft("tasks")
    folder = Path(result.stdout.strip())
    assert (folder / "gsm8k_easy" / "gsm8k_easy.yaml").is_file()
    listed = {line.split()[0] for line in result.stderr.splitlines()}
    assert listed == {path.stem for path in folder.glob("*/*.yaml")}
    assert "gsm8k_easy_gen  " in result.stderr and "GSM8K-Easy" in result.stderr


def test_a_quiet_command_gives_its_result_and_nothing_else() -> None:
    result = aft("tasks", "--quiet")
    assert result.stdout == aft("tasks").stdout and result.stderr == ""
    assert_refused(aft("show", "nowhere.safetensors", "-q"), 1, "no such booster file")
    assert_refused(aft("tasks", "-q", "-v"), 2, "--quiet and --verbose cannot be used together")


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (errors.ParseError("no form"), 2),
        (errors.ReferenceSyntaxError("no form"), 2),
        (errors.BoosterError("broken"), 1),
        (errors.FileError("broken"), 1),
        (errors.TaskError("broken"), 1),
        (errors.TrainingError("broken"), 1),
        (errors.ModelError("broken"), 1),
        (errors.CacheError("broken"), 1),
    ],
)
def test_exit_codes_tell_values_from_work(error: Exception, exit_code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(references, "load", failing)
    assert_refused(aft("show", "a.safetensors"), exit_code, str(error))


def test_an_interrupted_command_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(references, "load", interrupted)
    result = aft("show", "a.safetensors")
    assert (result.exit_code, result.stderr) == (130, "Interrupted: nothing was written.\n")


def test_what_click_cannot_understand_ends_with_2() -> None:
    assert_refused(aft("shew"), 2, "No such command 'shew'")
    assert_refused(aft("show"), 2, "Missing argument 'VECTOR'")
    assert_refused(aft("show", "a.safetensors", "--jsonl"), 2, "--jsonl")
