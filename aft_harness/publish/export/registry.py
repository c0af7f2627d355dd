"""The targets of `aft export`, and the one way in which all of them run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from aft_harness.errors import ParseError
from aft_harness.publish.export import gguf, gguf_model, hotwire
from aft_harness.publish.export.target import Exported, Job, Target, check_free

TARGETS: dict[str, Target] = {each.name: each for each in (gguf.TARGET, gguf_model.TARGET, hotwire.TARGET)}
"""By name, in the order in which they are listed."""


def export(
    target: str,
    vector: Any,
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    scale: float = 1.0,
    force: bool = False,
    **options: Any,
) -> Exported:
    """Writes a booster in the format of another tool.

    Args:
        target: A key of `TARGETS`.
        vector: What `vector=` takes: a path, a booster, several at strengths.
        output: The file or folder to write.
        model: Of the target's: the model that it goes into, or is checked against.
        scale: Factor on the whole of `vector`.
        force: Replace what is there.
        **options: The target's own options.

    Raises:
        AftError: The booster cannot be read, or cannot be said exactly in that format; one line says why.

    Example:
        >>> export("gguf", "arc.safetensors", "arc.gguf").use  # doctest: +SKIP
    """
    from aft_harness.boosters import references

    if target not in TARGETS:
        raise ParseError(f"target {target!r} is not one of {', '.join(TARGETS)}")
    chosen, path = TARGETS[target], Path(output)
    if chosen.suffix and path.suffix != chosen.suffix:
        raise ParseError(f"{path}: a file of the target {target} ends in {chosen.suffix}")
    if chosen.needs_model and model is None:
        raise ParseError(f"the target {target} needs a model: {chosen.model}")
    if unknown := set(options) - {option.name for option in chosen.options}:
        raise ParseError(f"the target {target} has no option {', '.join(sorted(unknown))}")
    check_free(path, force)
    variant = references.load(vector, scale)
    values = {option.name: option.default for option in chosen.options} | options
    return chosen.run(Job(variant, path, None if model is None else str(model), values))
