"""What an export target is: its name and options, what it is asked to write, and what it answers.

Knows boosters and files. Knows no target; imports nothing heavy, so that the command's help is made from this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from aft_harness import __version__
from aft_harness.errors import ExportError

if TYPE_CHECKING:
    from torch import Tensor

    from aft_harness.boosters.booster import Booster
    from aft_harness.boosters.variant import Variant

RECORD = "aft_export.json"
"""The file of an exported folder that says what it was made from."""


@dataclass(frozen=True)
class Option:
    """An option of a target: a keyword argument of its `write`, and how the command line spells it.

    Attributes:
        name: The argument; the command's option has dashes for underscores.
        help: One line.
        required: Whether it must be given.
        default: What it is otherwise. None is for whatever the target then decides, and the help says what.
        choices: The values that it takes; any text if empty.
        switch: Whether it is on or off, `--name/--no-name` where the default is None.
    """

    name: str
    help: str
    required: bool = False
    default: Any = None
    choices: tuple[str, ...] = ()
    switch: bool = False


@dataclass(frozen=True)
class Order:
    """What a target is asked to write.

    Attributes:
        variant: The booster and its strength.
        output: Where the export will be: what `Exported` names, and nothing is written to.
        place: Where the target writes it: a path on the same file system at which there is nothing yet. It becomes
            `output`, whole, when `write` returns, and vanishes when it raises.
    """

    variant: Variant
    output: Path
    place: Path

    @property
    def booster(self) -> Booster:
        """The booster with its strength in its vectors.

        Raises:
            ExportError: The variant has no booster.
        """
        if self.variant.booster is None:
            raise ExportError("the unchanged model needs no export")
        return self.variant.booster.scaled(self.variant.strength)

    @property
    def vectors(self) -> dict[int, Tensor]:
        """What is added to the output of each layer, [hidden], float32, by the 0-based layer; the strength is in it.

        Raises:
            ExportError: An injection is not a vector, which next to no other tool can express.
        """
        from aft_harness.boosters.injections import StaticInjection

        vectors = {}
        for layer, injection in self.booster.injections.items():
            if not isinstance(injection, StaticInjection):
                raise ExportError(
                    f"layer {layer} of {self.variant.name} has a {injection.spec['kind']} injection, and only a static "
                    "vector can be exported; train one with aft-train --kind static"
                )
            vectors[layer] = injection.vector
        return vectors

    @property
    def record(self) -> dict[str, Any]:
        """What the export is made from, as every export records it; no path is in it."""
        booster = self.variant.booster
        assert booster is not None
        base = booster.provenance.base_model
        return {
            "aft_harness": __version__,
            "base_model": base.label if base else "unknown",
            "booster": self.variant.name,
            "booster_sha256": booster.sha256,
            "layers": list(booster.layers),
            "strength": self.variant.strength,
        }


@dataclass(frozen=True)
class Exported:
    """What a target wrote.

    Attributes:
        path: Where it is.
        use: The exact command, or lines of Python, that use it.
        check: How one sees that the booster is on.
        notes: What else must be known, such as what rounding costs; a line each.
        record: What the record of the export says beside `Order.record`. Neither paths nor names of machines.
    """

    path: Path
    use: str
    check: str
    notes: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """Something that a booster is exported to.

    Attributes:
        name: The word of the command line.
        summary: One line for the help.
        write: Takes an `Order` and the options as keyword arguments, writes `order.place` and returns what was written.
            Raises `ExportError`, with the reason and the way out, where the target cannot say exactly what the booster
            does.
        shape: What it writes. A folder holds the record as `aft_export.json`, a lone file has it beside itself
            (`OUTPUT.json`), both written for the target; a file that carries it within, such as a GGUF, is the
            target's own to fill.
        description: Paragraphs for the target's own help, after the summary.
        suffix: What the name of a file must end in.
        options: Beside those that all targets have.
    """

    name: str
    summary: str
    write: Callable[..., Exported]
    shape: Literal["folder", "file", "file with record"]
    description: str = ""
    suffix: str = ""
    options: tuple[Option, ...] = ()


MODEL = Option("model", "Hub id or folder of the model that the booster is for.", required=True)
REVISION = Option("revision", "Branch, tag or commit of a model on the hub.  [default: its main branch]")
"""The options of targets that need the model."""


def check_revision(model: object, revision: str | None) -> None:
    """Refuses a revision of what has none.

    Raises:
        ExportError: The model is a folder.
    """
    if revision is not None and Path(str(model)).is_dir():
        raise ExportError(f"{model} is a folder, and only a model on the hub has a revision such as {revision}")
