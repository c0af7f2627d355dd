"""The export targets by their names, and running one of them: the same checks and the same care for all.

Knows what a target is, and that nothing is overwritten by accident. What each of them writes is its module's business.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aft_harness.errors import AftError, ExportError, ParseError
from aft_harness.files import exists, read_regular, write_atomically, written_whole
from aft_harness.publish.export import checkpoint, gguf, gguf_model, hotwire, lm_eval, peft
from aft_harness.publish.export.target import RECORD, Exported, Order, Target

if TYPE_CHECKING:
    from aft_harness.boosters.references import VectorSpec
    from aft_harness.boosters.variant import Variant

TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        checkpoint.TARGET,
        peft.TARGET,
        gguf.TARGET,
        gguf_model.TARGET,
        hotwire.TARGET,
        lm_eval.TARGET,
    )
}
"""In the order of the help."""


def export(
    target: str,
    vector: VectorSpec,
    output: str | os.PathLike[str],
    *,
    scale: float = 1.0,
    overwrite: bool = False,
    **options: Any,
) -> Exported:
    """Writes a booster as another tool reads it: exactly, or not at all.

    Args:
        target: What reads it: `checkpoint`, `peft`, `lm-eval`; `aft export --help` lists all.
        vector: What `vector=` takes; several boosters are mixed.
        output: The file or folder to write. It is there whole, or not at all.
        scale: Factor on the whole.
        overwrite: Replace what is there already: a file, or a folder that is itself an export.
        **options: Those of the target, as `aft export TARGET --help` lists them, such as `model`.

    Returns:
        Where it is, how it is used and how one sees that it is on.

    Raises:
        AftError: The booster cannot be read; the target cannot express it or does not know an option; there is
            something at `output` already.

    Example:
        >>> export("checkpoint", "arc.safetensors", "arc-model", model="HuggingFaceTB/SmolLM2-135M")  # doctest: +SKIP
    """
    from aft_harness.boosters import references

    found = _target(target, options)
    path = Path(output)
    if found.suffix and path.suffix != found.suffix:
        raise ParseError(f"{path}: a {found.name} export ends in {found.suffix}")
    _check_free(path, found, overwrite)
    return written(found, references.load(vector, scale), path, replace=overwrite, **options)


def written(
    target: Target,
    variant: Variant,
    path: Path,
    *,
    replace: bool = False,
    record: Mapping[str, Any] | None = None,
    **options: Any,
) -> Exported:
    """Writes the export of a variant and the record of what it was made from.

    Args:
        target: Writes it.
        variant: The booster and its strength.
        path: Where it will be, whole or not at all.
        replace: Whether what is there may be replaced.
        record: What the record says besides.
        **options: Of the target.

    Raises:
        AftError: See `export`.
    """
    with written_whole(path, replace=replace) as place:
        order = Order(variant, path, place)
        exported = target.write(order, **{option.name: option.default for option in target.options} | options)
        content = {**order.record, **exported.record, **(record or {})}
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        if target.shape == "folder":
            (place / RECORD).write_text(text, encoding="utf-8")
        elif target.shape == "file with record":  # before the file, which is never without one
            write_atomically(beside(path), text.encode())
    return exported


def beside(path: Path) -> Path:
    """Where the record of a lone file is."""
    return path.with_name(f"{path.name}.json")


def _target(name: str, options: Mapping[str, Any]) -> Target:
    if name not in TARGETS:
        raise ExportError(f"no export target {name!r}; there are {', '.join(TARGETS)}")
    found = TARGETS[name]
    known = {option.name: option for option in found.options}
    if unknown := sorted(set(options) - set(known)):
        raise ExportError(f"{name} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}")
    for option in found.options:
        if option.required and options.get(option.name) is None:
            raise ExportError(f"{name} needs the option {option.name!r}: {option.help}")
    return found


def _is_record(path: Path) -> bool:
    """Whether a file says what an export was made from."""
    try:
        found = json.loads(read_regular(path, 2**20))
    except (AftError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"aft_harness", "booster_sha256"} <= found.keys()


def _check_free(path: Path, target: Target, overwrite: bool) -> None:
    """Refuses to overwrite, before any work is done."""
    places = [path, beside(path)] if target.shape == "file with record" else [path]
    for place in places:
        if not os.path.lexists(place):
            continue
        if place != path and not os.path.lexists(path) and _is_record(place):  # of an export that was interrupted
            continue
        if not overwrite:
            raise ExportError(f"{place} exists; choose another output, or overwrite it")
        # A folder that is given by mistake must not vanish.
        if place.is_dir() and target.shape != "folder":
            raise ExportError(f"{place} is a folder, and a {target.name} export is a file")
        if target.shape == "folder" and not (place.is_dir() and (exists(place / RECORD) or not any(place.iterdir()))):
            raise ExportError(f"{place} is not an export of aft_harness, and is not replaced")
