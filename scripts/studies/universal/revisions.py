"""Which models a phase runs on, each at one commit: what `models.yaml` lists, and what the first run found.

Knows hub ids, commits and the lock file. Loads no model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from aft_harness.errors import ModelError
from aft_harness.files import write_atomically

LISTED = Path(__file__).with_name("models.yaml")
LOCK = "models.lock.yaml"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Named:
    """A model as it is asked for.

    Attributes:
        pretrained: Hub id, or a folder on this machine.
        revision: Commit or branch; of a folder None.
        published: What its configuration says, for a forecast without the hub.
    """

    pretrained: str
    revision: str | None = None
    published: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Named:
        """`ID`, `ID@REVISION` or a folder."""
        if Path(text).is_dir():
            return cls(text)
        name, _, revision = text.partition("@")
        listed = {each.pretrained: each for phase in ("architectures", "scaling") for each in models_of(phase)}
        known = listed.get(name, cls(name))
        return cls(name, revision or known.revision, known.published)


def models_of(phase: str) -> list[Named]:
    """The models that `models.yaml` lists for a phase."""
    return [Named(**each) for each in yaml.safe_load(LISTED.read_text(encoding="utf-8"))[phase]]


def pinned(
    models: Sequence[Named], work: Path, commit_of: Callable[[str, str], str] | None = None
) -> list[dict[str, Any]]:
    """Arguments of `--model steered-hf` for each model, with the commit that the first run used.

    Args:
        models: As they are asked for.
        work: The lock file is here; commits that it lacks are added to it.
        commit_of: Finds the commit of a hub id and a branch; by default on the hub, or else in its cache.

    Raises:
        ModelError: A commit is not known and cannot be found out, or another one than the lock file's is asked for.
    """
    place = work / LOCK
    known: dict[str, str] = yaml.safe_load(place.read_text(encoding="utf-8")) if place.is_file() else {}
    found = dict(known)
    for model in models:
        if Path(model.pretrained).is_dir():
            continue
        asked = model.revision or "main"
        locked = known.get(model.pretrained)
        if locked is None:
            exact = _COMMIT.fullmatch(asked) is not None
            found[model.pretrained] = asked if exact else (commit_of or _commit)(model.pretrained, asked)
        elif _COMMIT.fullmatch(asked) and asked != locked:
            raise ModelError(
                f"{model.pretrained}: {place} says commit {locked}, not {asked}; give another --work for another commit"
            )
    if found != known:
        write_atomically(place, yaml.safe_dump(found, sort_keys=True).encode())
    return [
        {
            "pretrained": model.pretrained,
            **({"revision": revision} if (revision := found.get(model.pretrained)) else {}),
        }
        for model in models
    ]


def _commit(model: str, revision: str) -> str:
    """The commit that a branch points to, on the hub, or in the cache where the hub cannot be asked.

    Raises:
        ModelError: Neither knows it.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        found = HfApi().model_info(model, revision=revision).sha
        if found:
            return str(found)
    except HfHubHTTPError as error:
        raise ModelError(f"{model}: the hub does not give revision {revision} ({str(error).splitlines()[0]})") from None
    except (OfflineModeIsEnabled, OSError):  # the cache may still know
        pass
    try:
        kept = snapshot_download(model, revision=revision, local_files_only=True, allow_patterns=["config.json"])
    except (LocalEntryNotFoundError, OSError, ValueError):
        raise ModelError(
            f"{model}: which commit {revision} is cannot be found out offline; be online for the first run, or name "
            f"it: --model {model}@COMMIT"
        ) from None
    return Path(kept).name
