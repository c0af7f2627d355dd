"""What the card of a booster says of its file: which one it is, and its SHA-256; and that this is so.

Knows the metadata at the head of a card. What a card tells its readers is written in `publish/library/card.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aft_harness.boosters import file_format
from aft_harness.boosters.booster import Booster
from aft_harness.errors import AftError, BoosterError, FileError
from aft_harness.files import read_regular
from aft_harness.text import reason

SUFFIX = ".safetensors"
CARD, RESULTS = "README.md", "results.csv"
"""What stands beside a booster: its card, and the leaderboard rows that the card's claims are."""

ENTRY = "booster"
"""The key of a card's metadata that says which file is the booster, and its SHA-256."""

SIZE_LIMIT = 16 * 2**20
"""Bytes of a card or a results file; a booster file has `file_format.SIZE_LIMIT`."""

_PART = re.compile(r"[\w.-]+")


def inside(path: str) -> bool:
    """Whether a path with slashes stays in the folder that it starts from, on every system."""
    return all(_PART.fullmatch(part) and part.strip(".") for part in path.split("/"))


def load_checked(path: Path, file: str, card: Path | None, source: str) -> Booster:
    """Reads a booster file, and refuses one that is not the one which its card names.

    Args:
        path: Of the booster.
        file: Its name in the repository.
        card: The card beside it. Without one, or if it is about no booster file, nothing is compared.
        source: What messages call it.

    Raises:
        BoosterError: It cannot be read, or is not the card's.
    """
    booster = file_format.load(path, source)
    try:
        named = named_by(card) if card is not None else None
    except AftError as error:
        raise BoosterError(f"{source}: {error}") from None
    if named is not None and named[0] == file and named[1] != booster.sha256:
        raise BoosterError(
            f"{source}: not the booster of its card (sha256 {booster.sha256[:12]}; the card says {named[1][:12]})"
        )
    return booster


def named_by(card: Path) -> tuple[str, str] | None:
    """File name and SHA-256 of the booster that a card is about; None where it is about none.

    Raises:
        FileError: The card cannot be read.
        BoosterError: What it says of its booster cannot be understood.
    """
    entry = card_entry(read_text(card))
    if entry is None:
        return None
    file, sha256 = entry.get("file"), entry.get("sha256")
    if not isinstance(file, str) or not inside(file) or not file.endswith(SUFFIX):
        raise BoosterError(f"{card.name}: names no file of a booster")
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise BoosterError(f"{card.name}: has no SHA-256 of its booster")
    return file, sha256


def card_entry(text: str) -> Mapping[str, Any] | None:
    """What a card's metadata say of its booster; None where they say nothing.

    Raises:
        BoosterError: The metadata are malformed.
    """
    entry = card_data(text).get(ENTRY)
    if entry is not None and not isinstance(entry, Mapping):
        raise BoosterError(f"{CARD}: {ENTRY} is not a mapping")
    return entry


def card_data(text: str) -> dict[str, Any]:
    """The metadata of a card.

    Raises:
        BoosterError: They are malformed.
    """
    from huggingface_hub import ModelCard

    if not text.lstrip("\ufeff").startswith("---"):
        return {}
    try:
        return dict(ModelCard(text, ignore_metadata_errors=True).data.to_dict())
    except Exception as error:  # YAML of any shape is turned into arguments of a constructor
        raise BoosterError(f"{CARD}: malformed metadata ({reason(error)})") from None


def read_text(path: Path) -> str:
    """The text of a card or a results file.

    Raises:
        FileError: It cannot be read.
    """
    try:
        return read_regular(path, SIZE_LIMIT).decode("utf-8-sig")
    except FileError as error:
        raise FileError(f"{path.name}: {error}") from None
    except UnicodeDecodeError:
        raise FileError(f"{path.name}: not UTF-8 text") from None
