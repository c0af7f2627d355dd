"""Where cells run, and what each worker gets: words and numbers of `--on` and of a plan.

Knows nothing of clusters, and loads nothing heavy.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aft_harness.errors import ParseError, StudyError, TaskError

_LOCAL = re.compile(r"local:([1-9][0-9]{0,3})")
_CLUSTER = re.compile(r"ray://[^\s/]+")


@dataclass(frozen=True)
class Place:
    """Where the cells of a study run.

    Attributes:
        count: Workers on this machine; None means a cluster that is there already.
        address: Of the cluster, `ray://HOST[:PORT]`; None means the one that this machine belongs to.
    """

    count: int | None = None
    address: str | None = None

    @classmethod
    def parse(cls, text: str) -> Place:
        """Reads `ray`, `ray://HOST[:PORT]` or `local:N`.

        Raises:
            ParseError: The text has another form.
        """
        if text == "ray":
            return cls()
        if match := _LOCAL.fullmatch(text):
            return cls(count=int(match[1]))
        if _CLUSTER.fullmatch(text):
            return cls(address=text)
        raise ParseError(f"{text!r}: expected ray, ray://HOST[:PORT] or local:N, such as local:2")

    def check_installed(self) -> None:
        """Refuses the place where Ray is not installed here.

        Raises:
            StudyError: It is not.
        """
        if importlib.util.find_spec("ray") is None:
            raise StudyError(f"{self} needs Ray: pip install 'aft-harness[ray]'")

    def __str__(self) -> str:
        """The place in its grammar."""
        return f"local:{self.count}" if self.count else self.address or "ray"


@dataclass(frozen=True)
class Workers:
    """What cells get on a cluster. Nothing of it changes a result, but for rounding where `cpus` does.

    Attributes:
        count: How many workers; None means as many as the cluster has room for.
        cpus: CPUs of each; None means 1 on a cluster, and an equal share of this machine for `local:N`.
        gpus: GPUs of each, also a fraction; None means 1 where the cluster has any, an equal share for `local:N`.
        documents: Documents of a share of an evaluation; None means `DOCUMENTS`, or `WRITTEN` where texts are written.
    """

    count: int | None = None
    cpus: int | None = None
    gpus: float | None = None
    documents: int | None = None

    @classmethod
    def of(cls, content: Any) -> Workers:
        """Reads what a plan says under `workers`.

        Raises:
            TaskError: Another key, or a value that is none.
        """
        names = ("count", "cpus", "gpus", "documents")
        if not isinstance(content, Mapping) or set(content) - set(names):
            raise TaskError(f"workers: expected any of {', '.join(names)}")
        for name in ("count", "cpus", "documents"):
            value = content.get(name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise TaskError(f"workers: {name} {value!r} is not a whole number of at least 1")
        gpus = content.get("gpus")
        if gpus is not None:
            number = isinstance(gpus, int | float) and not isinstance(gpus, bool) and 0 <= gpus < math.inf
            if not number or (gpus > 1 and gpus != int(gpus)):
                raise TaskError(f"workers: gpus {gpus!r} is neither a whole number nor a fraction of one GPU")
        return cls(**content)


DOCUMENTS = 256
WRITTEN = 64

SHARES_A_WORKER = 2
"""Shares of one evaluation, at most, for each worker: each lays out the requests of all of it."""


def shares(documents: int, written: bool, workers: int, of_a_share: int | None = None) -> int:
    """How many shares an evaluation is cut into; 1 means that it is not cut.

    Args:
        documents: What it evaluates.
        written: Whether texts are written.
        workers: How many there are.
        of_a_share: See `Workers.documents`.
    """
    wanted = math.ceil(documents / (of_a_share or (WRITTEN if written else DOCUMENTS)))
    return max(1, min(wanted, SHARES_A_WORKER * workers if workers > 1 else 1))
