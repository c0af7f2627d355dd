"""Commands of the package as processes that are killed at a chosen moment, or find no room for what they write.

A process is a fork of this one, which has imported what the commands import and has indexed lm-eval's tasks: otherwise
most of the time of a command would be its start, in which nothing is written. Linux only. Knows nothing of results.
"""

from __future__ import annotations

import fcntl
import functools
import importlib
import os
import pkgutil
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

PATIENCE = 300.0
"""Seconds after which a command counts as one that hangs."""

_PIPE = 2**20  # so that a process need not wait for a reader
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = (
    *("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"),
    "sqlite3.connect",
)
_HEAVY = ("aft_harness.bridge", "aft_harness.engine.llama", "aft_harness.publish.vllm", "aft_harness.studies.ray_pool")
"""Modules that need what may not be installed, and that no command here runs."""


@dataclass(frozen=True)
class Disturbance:
    """What happens to a process; nothing by default.

    Attributes:
        seconds: It is killed after so many.
        operation: It is killed just before its n-th change of a file or folder, counted from 1.
        size: It is killed in the middle of the write that makes a file larger than this.
        limit: Writes that make a file larger than this fail, as they do on a full disk.
        pause: Before its n-th change it waits for so many seconds.
    """

    seconds: float | None = None
    operation: int | None = None
    size: int | None = None
    limit: int | None = None
    pause: tuple[int, float] | None = None

    def __str__(self) -> str:
        """As messages have it."""
        named = {
            "after {:.2f} s": self.seconds,
            "before change {}": self.operation,
            "in a write beyond {} bytes": self.size,
        }
        words = [text.format(value) for text, value in named.items() if value is not None]
        return f"killed {words[0]}" if words else f"files limited to {self.limit} bytes"


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: Its exit code; negative where a signal ended it.
        output: What it wrote to stdout.
        errors: What it wrote to stderr.
        seconds: How long it ran.
        changes: What it did to files and folders: the audit event of Python and the path, or both paths of a renaming.
    """

    code: int
    output: str
    errors: str
    seconds: float
    changes: tuple[tuple[str, ...], ...]

    @property
    def killed(self) -> bool:
        """Whether a signal ended it."""
        return self.code < 0

    @property
    def last_line(self) -> str:
        """The last line on stderr."""
        return next((line for line in reversed(self.errors.splitlines()) if line.strip()), "")


class Process:
    """A command that runs."""

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str] | None = None,
        disturbance: Disturbance | None = None,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts it.

        Args:
            arguments: Of `aft`.
            folder: Where changes count.
            environment: Further variables.
            disturbance: What happens to it.
            prepare: Called in the new process.
        """
        self._disturbance = disturbance or Disturbance()
        pipes = [os.pipe() for _ in range(3)]
        for _, write in pipes:
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, _PIPE)
        sys.stdout.flush()
        sys.stderr.flush()
        self._begun = time.monotonic()
        self._child = os.fork()
        if not self._child:
            try:
                os.environ.update(environment or {})
                _become(arguments, folder, self._disturbance, [write for _, write in pipes], prepare)
            finally:
                os._exit(70)
        for _, write in pipes:
            os.close(write)
        self._readers = [read for read, _ in pipes]

    def ended(self) -> Ended:
        """Waits for its end, and kills it when its time has come."""
        handle = os.pidfd_open(self._child)
        allowed = PATIENCE if self._disturbance.seconds is None else self._disturbance.seconds
        remaining = max(self._begun + allowed - time.monotonic(), 0)
        if hangs := not select.select([handle], [], [], remaining)[0]:
            os.kill(self._child, signal.SIGKILL)
        _, status = os.waitpid(self._child, 0)
        seconds = time.monotonic() - self._begun
        os.close(handle)
        output, errors, changes = map(_content, self._readers)
        if hangs and self._disturbance.seconds is None:
            errors += f"\nstill running after {PATIENCE:.0f} s"
        made = tuple(tuple(line.split("\t")) for line in changes.splitlines())
        return Ended(os.waitstatus_to_exitcode(status), output, errors, seconds, made)


def run(*arguments: Any, **options: Any) -> Ended:
    """Runs a command to its end; takes what `Process` takes."""
    return Process(*arguments, **options).ended()


def warm_up(include_path: Path) -> None:
    """Imports what the commands import, and does once what takes each of them seconds."""
    import aft_harness

    for module in pkgutil.walk_packages(aft_harness.__path__, "aft_harness."):
        if not module.name.startswith(_HEAVY) and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    import torch.utils.collect_env

    from aft_harness.harness.tasks import Tasks

    vars(torch.utils.collect_env)["get_pretty_env_info"] = functools.cache(torch.utils.collect_env.get_pretty_env_info)
    torch.utils.collect_env.get_pretty_env_info()
    Tasks([include_path]).check(["toy_choice"])


def _become(
    arguments: Sequence[str], folder: Path, disturbance: Disturbance, pipes: Sequence[int], prepare: Callable[[], None]
) -> NoReturn:
    """Makes this fork the command, and ends it as Python would."""
    from aft_harness.cli import main

    out, err, changes = pipes
    os.dup2(out, 1)
    os.dup2(err, 2)
    tempfile.tempdir = None  # TMPDIR counts again
    code: Any = 1
    try:
        prepare()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if (bytes_ := disturbance.limit if disturbance.size is None else disturbance.size) is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, bytes_))
        if disturbance.size is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which Python ignores, so that writes fail instead
        _watch(str(folder), changes, disturbance)
        main(list(arguments), prog_name="aft")
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _watch(folder: str, pipe: int, disturbance: Disturbance) -> None:
    """Reports each change below a folder before it happens, unless this is the one at which the process is killed."""
    waits, seconds = disturbance.pause or (None, 0.0)
    done = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & _WRITING):
            return
        if event != "open" and event not in _CHANGES:
            return
        count = 2 if event in ("os.rename", "os.link", "os.symlink") else 1
        paths = [os.fsdecode(each) for each in arguments[:count] if not isinstance(each, int)]
        # A path that is not absolute is one in a folder that is being removed.
        if not any(not os.path.isabs(path) or path.startswith(folder) for path in paths):
            return
        done += 1
        if done == disturbance.operation:
            os.kill(os.getpid(), signal.SIGKILL)
        if done == waits:
            time.sleep(seconds)
        os.write(pipe, ("\t".join((event, *paths)) + "\n").encode())

    sys.addaudithook(hook)


def _content(handle: int) -> str:
    with os.fdopen(handle, encoding="utf-8", errors="replace") as file:
        return file.read()
