"""The checks of a command: that it survives kills, too little room, read-only folders and another process.

Knows what must be true after a run that was disturbed, whatever the command.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import click
from crashes import mounts
from crashes.commands import COMMANDS, TOGETHER, Workshop
from crashes.contents import Broken, is_temporary
from crashes.process import Disturbance, Ended

ROUNDS = 3
"""How often two processes run at the same time."""

_PAUSE = 3.0  # seconds
_PAGE = 4096
_RANDOM = re.compile(r"\.[a-z0-9_]{8}(?=\.aft-tmp)")
_DATE = re.compile(r"\d{4}-\d\d-\d\dT[\d.-]*\d")


@dataclass
class Verdict:
    """What a check found.

    Attributes:
        problems: What must not be.
        notes: What else there is to know.
        leftovers: What the undisturbed run would not have left behind; the next run must not mind.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    leftovers: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        """In one line."""
        if self.problems:
            distinct = list(dict.fromkeys(self.problems))
            return f"FAILED: {'; '.join(distinct[:3])}{f'; {len(distinct) - 3} more' if len(distinct) > 3 else ''}"
        left = [f"leaves {', '.join(sorted(self.leftovers))}"] if self.leftovers else []
        notes = "; ".join(dict.fromkeys([*self.notes, *left]))
        return f"ok ({notes})" if notes else "ok"


class Check:
    """The checks of one command; each is a method that gives a `Verdict`."""

    def __init__(self, shop: Workshop, folder: Path, name: str, moments: int, draw: random.Random) -> None:
        """Runs the command undisturbed.

        Args:
            shop: Where it runs.
            folder: Where its files go.
            name: Of the command.
            moments: How often it is killed.
            draw: Draws the moments.

        Raises:
            click.ClickException: It fails although nothing disturbs it.
        """
        self._shop, self._folder, self._name, self._draw = shop, folder, name, draw
        self._command = COMMANDS[name]
        self._moments = min(moments, 1) if self._command.slow else moments
        at = self._prepared("undisturbed")
        self._before = shop.contents(self._command, at)
        self._ended = self._run(at)
        if self._ended.code:
            raise click.ClickException(f"{name} fails where nothing disturbs it: {self._ended.last_line}")
        self._after = shop.contents(self._command, at)

    def order(self) -> Verdict:
        """Files are made beside their places, and the state of a training goes when its booster is in its place."""
        verdict, root, placed = Verdict(), self._folder / "undisturbed", set[str]()
        for event, *paths in self._ended.changes:
            path = Path(paths[-1])
            if event == "os.rename":
                placed.add(path.name)
            if not path.is_relative_to(root) or is_temporary(path.relative_to(root)):
                continue
            if event == "open":
                verdict.problems.append(f"{_DATE.sub('DATE', path.name)} is opened for writing under its final name")
            stem = path.name.partition(".resume")[0].removesuffix(".safetensors")
            if event == "os.remove" and ".resume" in path.name and f"{stem}.safetensors" not in placed:
                verdict.problems.append(f"{path.name} is removed before {stem}.safetensors is there")
        return verdict

    def kills(self) -> Verdict:
        """Killed at any moment, it leaves whole files, and does its work when it is run again."""
        verdict, killed = Verdict(), 0
        for disturbance in self._disturbances():
            at = self._prepared("killed")
            ended = self._run(at, disturbance=disturbance)
            killed += ended.killed
            self._progress(f"{disturbance}{'' if ended.killed else f': ended before, with exit code {ended.code}'}")
            self._left_whole(at, verdict, str(disturbance))
            self._again(at, verdict, str(disturbance))
        verdict.notes.append(f"{killed} of {self._moments} runs killed")
        return verdict

    def full(self) -> Verdict:
        """Where there is no room, it says so and leaves whole files; with more room it does its work."""
        verdict, sizes = Verdict(), sorted(self._after.sizes)
        limits = {sizes[-1] // 2, *(() if self._command.slow else (0, sizes[0] // 2, sizes[len(sizes) // 2] // 2))}
        for limit in sorted(limits):
            at, disturbance = self._prepared("limited"), Disturbance(limit=limit)
            self._without_room(at, verdict, str(disturbance), self._run(at, disturbance=disturbance))
        if not self._command.here or self._command.slow:
            return verdict
        if not mounts.possible():
            verdict.notes.append("no file system can be mounted to be full")
            return verdict
        needed = sum(-(-size // _PAGE) for size in sizes)
        for pages in (0, needed // 2):
            with mounts.mounted(self._folder / "full", (2 * needed + 256) * _PAGE) as at:
                self._shop.prepared(self._command, at)
                with mounts.filled(at, pages * _PAGE):
                    ended = self._run(at)
                self._without_room(at, verdict, f"{pages * _PAGE} bytes free", ended)
        return verdict

    def read_only(self) -> Verdict:
        """Where it may not write, it says so."""
        verdict, file = Verdict(), self._folder / "file"
        if not self._command.here:
            verdict.notes.append("writes nothing on this machine")
            return verdict
        self._prepared("unused")  # for what is on the hub
        file.write_text("")
        self._complains(self._run(file), verdict, "below a file", self._folder)
        if not mounts.possible():
            verdict.notes.append("no file system can be mounted to be read-only")
            return verdict
        with mounts.mounted(self._folder / "read-only", 256 * _PAGE) as at:
            self._shop.prepared(self._command, at)
            mounts.make_read_only(at)
            self._complains(self._run(at), verdict, "read-only", self._folder)
        return verdict

    def together(self) -> Verdict:
        """Two processes at the same time do what two in a row do, or one of them says why not."""
        verdict, lines = Verdict(), (self._command.line, TOGETHER.get(self._name, self._command.line))
        expected = self._after
        if lines[0] != lines[1]:
            at = self._prepared("in-a-row")
            for line in lines:
                self._shop.run(line, at)
            expected = self._shop.contents(self._command, at)
        rounds = 1 if self._command.slow else ROUNDS
        for place in range(rounds):
            at = self._prepared("together")
            # One waits in the middle of its work, for as long as the other takes, unless that has to wait for it.
            number = 1 + int((place + self._draw.random()) / rounds * len(self._ended.changes))
            pause = Disturbance(pause=(number, min(self._ended.seconds, _PAUSE)))
            both = [self._shop.start(lines[0], at, disturbance=pause), self._shop.start(lines[1], at)]
            ends = [process.ended() for process in both]
            for ended in ends:
                if ended.code:
                    self._complains(ended, verdict, "together", at)
                    verdict.notes.append(f"one may end with {self._shortened(ended.last_line, at)!r}")
            if all(ended.code for ended in ends):
                verdict.problems.append("together: both fail")
            try:
                verdict.problems += self._shop.contents(self._command, at).differences(expected)
            except Broken as error:
                verdict.problems.append(f"together: {error}")
        return verdict

    def _disturbances(self) -> Iterator[Disturbance]:
        """Kills spread over the whole run: at moments, before changes of files, and within writes, in turn."""
        seconds, changes, sizes = self._ended.seconds, len(self._ended.changes), self._after.sizes
        for place in range(self._moments):
            part = (place + self._draw.random()) / self._moments
            if place % 3 == 0 or not changes:
                yield Disturbance(seconds=part * seconds)
            elif place % 3 == 1:
                yield Disturbance(operation=1 + int(part * changes))
            else:
                yield Disturbance(size=self._draw.randrange(max(self._draw.choice(sizes), 1)))

    def _without_room(self, at: Path, verdict: Verdict, when: str, ended: Ended) -> None:
        """A run for which there was too little room, or just enough."""
        if ended.code:
            self._complains(ended, verdict, when, at)
        else:
            self._progress(f"{when}: succeeded")
            verdict.problems += [f"{when}: succeeds, but {each}" for each in self._unlike(at)]
        self._left_whole(at, verdict, when)
        if not self._command.slow:
            self._again(at, verdict, when)

    def _left_whole(self, at: Path, verdict: Verdict, when: str) -> None:
        """What a disturbed run leaves under final names is what was there before, or what will be."""
        try:
            left = self._shop.contents(self._command, at)
        except Broken as error:
            verdict.problems.append(f"{when}: {self._shortened(str(error), at)}")
            return
        halves = left.halves(self._before, self._after, self._command.growing, self._command.whole)
        verdict.problems += [f"{when}: {each}" for each in halves]

    def _again(self, at: Path, verdict: Verdict, when: str) -> None:
        """The same command succeeds now, with the result of the undisturbed run."""
        ended = self._run(at)
        if ended.code and "exist" in ended.last_line:  # it replaces nothing unasked, which is right if all is there
            verdict.problems += [f"{when}: refuses to run again, though {each}" for each in self._unlike(at)]
            ended = self._run(at, "--overwrite")
        if ended.code:
            verdict.problems.append(f"{when}: fails when run again: {self._shortened(ended.last_line, at)}")
        verdict.problems += [f"{when}: when run again, {each}" for each in self._unlike(at)]
        if self._command.reader is not None:
            (self._shop.scratch / "read.csv").unlink(missing_ok=True)
            if (read := self._shop.run(self._command.reader, at)).code:
                verdict.problems.append(f"{when}: its files cannot be read: {self._shortened(read.last_line, at)}")
        with suppress(Broken):
            further = {*self._shop.contents(self._command, at).leftovers} - {*self._after.leftovers}
            verdict.leftovers |= {_RANDOM.sub(".*", name) for name in further}

    def _unlike(self, at: Path) -> list[str]:
        """In what a folder differs from that of the undisturbed run."""
        try:
            return self._shop.contents(self._command, at).differences(self._after)
        except Broken as error:
            return [self._shortened(str(error), at)]

    def _complains(self, ended: Ended, verdict: Verdict, when: str, at: Path) -> None:
        """A run that could not do its work ends with one line that says why."""
        lines = [line for line in ended.errors.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("Error: ")]
        self._progress(f"{when}: {self._shortened(ended.last_line, at)}")
        if not ended.code:
            verdict.problems.append(f"{when}: succeeds")
        elif ended.killed:
            verdict.problems.append(f"{when}: ended by signal {-ended.code}")
        elif "Traceback" in ended.errors:
            verdict.problems.append(f"{when}: a traceback, which ends with {self._shortened(ended.last_line, at)}")
        elif len(errors) != 1 or lines[-1] != errors[0]:
            verdict.problems.append(f"{when}: not one line, but at the end {self._shortened(ended.last_line, at)}")

    def _prepared(self, name: str) -> Path:
        return self._shop.prepared(self._command, self._folder / name)

    def _run(self, at: Path, *further: str, disturbance: Disturbance | None = None) -> Ended:
        return self._shop.run(self._command.line, at, *further, disturbance=disturbance)

    def _progress(self, text: str) -> None:
        click.echo(f"    {self._name}: {text}", err=True)

    def _shortened(self, text: str, at: Path) -> str:
        return _DATE.sub("DATE", text.replace(f"{at}/", ""))[:240]
