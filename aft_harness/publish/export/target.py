"""What a target of `aft export` is: what it takes, what it gives back, and the checks that all targets share.

Knows variants and files. Knows no format; loads no torch, so that the targets can be listed at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aft_harness.errors import ExportError
from aft_harness.files import exists
from aft_harness.text import printable

if TYPE_CHECKING:
    from torch import Tensor

    from aft_harness.boosters.variant import Variant


@dataclass(frozen=True)
class Job:
    """One export.

    Attributes:
        variant: The booster and its strength.
        output: The file or folder to write.
        model: What `--model` named.
        options: The target's own options, by name.
    """

    variant: Variant
    output: Path
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        path: The file or folder.
        use: The commands, or lines of code, that use it.
        check: How one sees that it is on.
    """

    path: Path
    use: str
    check: str


@dataclass(frozen=True)
class Option:
    """An option of one target.

    Attributes:
        name: As on the command line, without the leading dashes.
        help: One line.
        choices: The values that it takes; without any it is a flag.
        default: Its value when it is not given.
    """

    name: str
    help: str
    choices: tuple[str, ...] = ()
    default: Any = None


@dataclass(frozen=True)
class Target:
    """A format that boosters are exported to.

    Attributes:
        name: On the command line.
        summary: One line on what it is for.
        run: Writes the file or folder, atomically.
        suffix: Of the file; empty where it is a folder.
        model: What `--model` is for; empty where the target takes none.
        needs_model: Whether there is no export without.
        options: Its own.
    """

    name: str
    summary: str
    run: Callable[[Job], Exported]
    suffix: str = ""
    model: str = ""
    needs_model: bool = False
    options: tuple[Option, ...] = ()


def origin(variant: Variant) -> dict[str, Any]:
    """What an exported file says of what it was made from, as JSON."""
    from aft_harness import __version__

    booster = variant.booster
    assert booster is not None
    base = booster.provenance.base_model
    return {
        "aft_harness": __version__,
        "base_model": None if base is None else base.model_dump(mode="json"),
        "booster_sha256": booster.sha256,
        "layers": list(booster.layers),
        "strength": variant.strength,
    }


def origin_entries(variant: Variant) -> dict[str, str | float]:
    """The same as metadata of flat keys, one of which holds all of it."""
    made_from = origin(variant)
    base = variant.booster.provenance.base_model if variant.booster else None
    return {
        "aft.booster_sha256": made_from["booster_sha256"],
        "aft.strength": float(variant.strength),
        "aft.base_model": base.label if base else "unknown",
        "aft.origin": json.dumps(made_from, sort_keys=True),
    }


def static_vectors(variant: Variant, target: str) -> dict[int, Tensor]:
    """What the variant adds to the output of each layer, its strength included; [hidden], float32.

    Raises:
        ExportError: What it adds depends on the hidden state.
    """
    booster = variant.booster
    if booster is None:
        raise ExportError(f"{target}: there is no booster to export")
    contextual = [layer for layer, part in booster.injections.items() if "vector" not in part.tensors]
    if contextual:
        raise ExportError(
            f"{printable(variant.name)}: layer {contextual[0]} is contextual: what it adds depends on the hidden "
            f"state, while {target} adds a vector that is always the same; train a static booster (--kind static)"
        )
    return {layer: part.tensors["vector"] for layer, part in booster.scaled(variant.strength).injections.items()}


def check_free(output: Path, force: bool) -> None:
    """Refuses to replace what is there, unless that is asked for.

    Raises:
        ExportError: Something is there.
    """
    if exists(output) and not force:
        raise ExportError(f"{output}: exists already; give another name, or --force to replace it")
