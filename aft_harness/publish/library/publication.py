"""A published booster as it is read: the booster, its card, and the leaderboard rows that the card's claims are.

Knows the files of a repository or of a named folder, and that they must agree with each other. Knows no model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aft_harness.boosters import card_header, catalogue, hub
from aft_harness.boosters.booster import Booster
from aft_harness.errors import AftError, BoosterError, FileError
from aft_harness.files import check_regular
from aft_harness.results import leaderboard, table

Row = Mapping[str, Any]
"""A row of a leaderboard, as plain values."""

NEAR = 1e-9
"""What a number that a card shows may differ from the row's: it is written in YAML and read back."""


@dataclass(frozen=True)
class Publication:
    """A booster with what is claimed of it.

    Attributes:
        name: What the user calls it.
        booster: The booster.
        card: Text of its card; empty without one.
        rows: The rows about it, in the order of a leaderboard.
    """

    name: str
    booster: Booster
    card: str
    rows: tuple[Row, ...]

    @classmethod
    def read(cls, name: str, booster: Booster, card: Path | None, results: Path | None) -> Publication:
        """Reads what stands beside a booster, and checks that card and rows agree.

        Args:
            name: What messages call it.
            booster: The booster, which is the card's.
            card: Its card.
            results: The rows.

        Raises:
            AftError: A file cannot be read, or the card claims what no row says.
        """
        try:
            text = card_header.read_text(card) if card is not None else ""
            rows = rows_about(booster, read_rows(results)) if results is not None else []
            published = cls(name, booster, text, tuple(rows))
            published.check()
        except AftError as error:
            raise BoosterError(f"{name}: {error}") from None
        return published

    @classmethod
    def open(cls, source: str) -> Publication:
        """The publication that a name or an `hf://` address stands for.

        Raises:
            AftError: There is none, or its files do not agree.
        """
        if source.startswith(hub.SCHEME):
            fetched = hub.fetch(hub.Address.parse(source, whole=False), results=True)
            return cls.read(str(fetched.address), fetched.load(), fetched.card, fetched.results)
        entry = catalogue.find(source)
        if entry is None:
            raise BoosterError(f"{source}: {catalogue.unknown(source)}")
        return cls.read(source, entry.load(), entry.card, entry.results)

    @property
    def claims(self) -> list[Row]:
        """The rows that the card claims something by: those with a corrected p-value."""
        return [row for row in self.rows if is_claim(row)]

    def check(self) -> None:
        """Refuses a card whose `model-index` has a number that no row has.

        Raises:
            BoosterError: With the number.
        """
        scores = [(row["task"], row["metric"], float(row["steered"])) for row in self.rows]
        for task, metric, value in claimed(card_header.card_data(self.card)):
            if not any((task, metric) == known[:2] and abs(value - known[2]) <= NEAR for known in scores):
                raise BoosterError(
                    f"the card claims {metric} {value:.6g} on {task}, which is not in {card_header.RESULTS}"
                )


def is_claim(row: Row) -> bool:
    """Whether a row has a corrected p-value: of a task's first metric, at strength 1."""
    return row["p_holm"] is not None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a leaderboard file, as plain values.

    Raises:
        AftError: It cannot be read, or is no leaderboard.
    """
    try:
        if check_regular(path) > card_header.SIZE_LIMIT:
            raise FileError(f"larger than {card_header.SIZE_LIMIT} bytes")
    except FileError as error:
        raise FileError(f"{path.name}: {error}") from None
    return table.to_rows(leaderboard.load(path))


def rows_about(booster: Booster, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those rows that are about a booster, whatever it was called there."""
    return [row for row in rows if row["booster_sha256"] == booster.sha256]


def claimed(data: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """Task, metric and value of each result in a card's metadata.

    Raises:
        BoosterError: They are malformed.
    """
    index = data.get("model-index")
    if index is None:
        return []
    try:
        return [
            (str(result["dataset"]["type"]), str(metric["type"]), float(metric["value"]))
            for model in index
            for result in model["results"]
            for metric in result["metrics"]
        ]
    except (TypeError, KeyError, ValueError, AttributeError):
        raise BoosterError(f"{card_header.CARD}: malformed model-index") from None


def file_name(text: str) -> str:
    """The name of a booster file as a repository has it: letters, digits and `. _ -`."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(text).name.removesuffix(card_header.SUFFIX)).strip("-.")
    return f"{stem or 'booster'}{card_header.SUFFIX}"
