"""Types of option values: how text becomes layers, slices, strengths and values by task. Loads nothing heavy."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from aft_harness.boosters.layers import Layers
from aft_harness.errors import FileError, ParseError
from aft_harness.files import read_regular
from aft_harness.slices import Slice
from aft_harness.studies.workers import Place

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)

_LARGEST_TEXTS = 2**26
"""Bytes of a file of plain texts."""

_OVERWRITE = "aft_harness.overwrite"


class _Parsed(click.ParamType[Any]):
    """A value that a function of the library reads."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Reads the value, or refuses it as click refuses values."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ParseError as error:
            self.fail(str(error), param, ctx)


LAYERS = _Parsed("layers", Layers.of)
LAYERS_OR_AUTO = _Parsed("layers", lambda text: "auto" if text == "auto" else Layers.of(text))
SLICE = _Parsed("slice", Slice.parse)
PLACE = _Parsed("place", Place.parse)


def _note_overwriting(context: click.Context, parameter: click.Parameter, given: bool) -> None:
    context.meta[_OVERWRITE] = given


overwrite_option = click.option(
    "--overwrite",
    is_flag=True,
    is_eager=True,  # known when the files are checked
    expose_value=False,
    callback=_note_overwriting,
    help="Overwrite existing output files.",
)
"""For commands that have an `OutputFile`."""


def _batch_size(text: str) -> int | str:
    kind, _, often = text.partition(":")
    if kind == "auto" and (not often or often.isdigit()):
        return text
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise ParseError(f"{text!r} is neither a number of rows nor auto")
    return int(text)


BATCH_SIZE = _Parsed("batch size", _batch_size)


class Number(click.FloatRange):
    """A number in a range; neither infinite nor NaN, which no range keeps out."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuses what is no finite number of the range."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


class WorkFolder(click.Path):
    """A folder for finished work: a path of this machine, or an address such as `s3://bucket/folder`, as text."""

    name = "folder"

    def __init__(self) -> None:
        """A folder, which need not exist."""
        super().__init__(file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Leaves addresses as they are."""
        if isinstance(value, str) and "://" in value:
            return value
        return super().convert(value, param, ctx)


WORK_FOLDER = WorkFolder()


class OutputFile(click.Path):
    """A file to write, checked before anything costs time: never one that exists, unless --overwrite is given."""

    name = "output file"

    def __init__(self, suffix: str | None = None, *, checked: bool = True) -> None:
        """A path of a file.

        Args:
            suffix: What its name must end in.
            checked: False leaves it to the command to call `refuse_existing`.
        """
        super().__init__(dir_okay=False, path_type=Path)
        self.suffix, self.checked = suffix, checked

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuses another suffix, a folder that cannot be written, and a file that would be replaced unasked."""
        path = Path(str(super().convert(value, param, ctx)))
        if self.suffix and path.suffix != self.suffix:
            self.fail(f"{value}: the file name must end in {self.suffix}", param, ctx)
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            self.fail(f"{value}: {path.parent} is not a writable folder", param, ctx)
        if self.checked:
            refuse_existing(ctx, path, param=param)
        return path


def refuse_existing(
    context: click.Context | None, *paths: Path, param: click.Parameter | None = None, hint: str | None = None
) -> None:
    """Refuses files that would be replaced unasked; a device or a pipe may be written to.

    Args:
        context: Of the command.
        *paths: Files that it is about to write.
        param: Whose value they are.
        hint: Its name, where the parameter is not at hand.

    Raises:
        click.BadParameter: One is there.
    """
    for path in paths:
        if path.is_file() and not (context and context.meta.get(_OVERWRITE)):
            raise click.BadParameter(f"{path}: file exists; use --overwrite to replace it", context, param, hint)


class PlainTexts(click.Path):
    """A file of plain texts: one a line in the field `text` of JSON lines, otherwise paragraphs between blank lines."""

    name = "texts"

    def __init__(self) -> None:
        """A path of a file."""
        super().__init__(dir_okay=False, exists=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Reads the texts."""
        if isinstance(value, list):  # click converts values once more
            return value
        path = Path(str(super().convert(value, param, ctx)))
        try:
            content = read_regular(path, _LARGEST_TEXTS).decode()
        except FileError as error:
            self.fail(str(error), param, ctx)
        except UnicodeDecodeError:
            self.fail(f"{path}: not a UTF-8 text file", param, ctx)
        if path.suffix != ".jsonl":
            texts = [text.strip() for text in re.split(r"\n\s*\n", content)]
        else:
            texts = [self._text(path, number, line, param, ctx) for number, line in _numbered(content)]
        if not any(texts):
            self.fail(f"{path}: no texts", param, ctx)
        return [text for text in texts if text]

    def _text(self, path: Path, number: int, line: str, *context: Any) -> str:
        try:
            text = json.loads(line)["text"]
        except (ValueError, TypeError, KeyError, RecursionError):
            text = None
        if not isinstance(text, str):
            self.fail(f'{path}, line {number}: not a JSON object with a string "text"', *context)
        return text.strip()


def _numbered(content: str) -> list[tuple[int, str]]:
    return [(number, line) for number, line in enumerate(content.split("\n"), start=1) if line.strip()]


BOOSTER_FILE = OutputFile(".safetensors")


def in_folder(option: str, path: Path | None) -> None:
    """Refuses a file whose folder does not exist, before anything costs time.

    Raises:
        click.BadParameter: It does not.
    """
    if path is not None and not path.parent.is_dir():
        raise click.BadParameter(f"{path}: {path.parent} is not a folder", param_hint=f"'{option}'")


def by_task(
    option: str, values: Sequence[str], names: Sequence[str], read: Callable[[str], Any], among: str = "--tasks"
) -> dict[str, Any]:
    """Values by task from `V` (every task) and `task=V`, of which the latter wins.

    Args:
        option: Whose values they are.
        values: As they were given.
        names: Of the tasks.
        read: Reads one.
        among: The options that the names come from.

    Raises:
        click.BadParameter: A value that cannot be read, or of a task that is not named.
    """
    common: dict[str, Any] = {}
    single: dict[str, Any] = {}
    for value in values:
        name, equals, text = value.rpartition("=")
        try:
            if equals and name not in names:
                raise ValueError(f"{name!r} is not among {among}")
            parsed = read(text)
        except ValueError as error:
            raise click.BadParameter(f"{value}: {error}", param_hint=f"'{option}'") from None
        if equals:
            single[name] = parsed
        else:
            common = dict.fromkeys(names, parsed)
    return {**common, **single}


def count(text: str, least: int = 0) -> int:
    """A number of documents."""
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise ValueError(f"expected a number of documents{f', at least {least}' if least else ''}")
    return int(text)


def positive(text: str) -> float:
    """A positive number."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError("expected a positive number")
    return value
