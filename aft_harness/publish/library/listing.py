"""What `aft list` shows: the boosters that have a name, and those that others published on the hub.

Knows cards and rows. Loads no model; of what is on the hub, only cards are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from aft_harness.boosters import card_header, catalogue, hub
from aft_harness.boosters.layers import ranges
from aft_harness.errors import AftError, HubError
from aft_harness.publish.library.card import TAG
from aft_harness.publish.library.publication import Publication, Row
from aft_harness.results import table
from aft_harness.results.text import aligned, one_line

COLUMNS = ("name", "model", "layers", "trained on", "gain", "size")
_NUMBERS = ("delta", "ci_low", "ci_high", "p_holm")


@dataclass(frozen=True)
class Listed:
    """A line of the list.

    Attributes:
        name: What `vector=` or `aft pull` calls it.
        model: The base model.
        layers: Changed layers.
        trained_on: Tasks that it learned from.
        gain: Change on the first of these, with its interval, a star where it is significant; or why there is none.
        size: Bytes of the file; None where that is not known.
        origin: Where it came from.
        sha256: Its identity.
        problem: Why it cannot be used; empty otherwise.
    """

    name: str
    model: str = ""
    layers: str = ""
    trained_on: tuple[str, ...] = ()
    gain: str = ""
    size: int | None = None
    origin: str = ""
    sha256: str = ""
    problem: str = ""

    @property
    def cells(self) -> list[str]:
        """What the list shows."""
        size = "" if self.size is None else f"{self.size / 1000:.0f} KB"
        gain = f"cannot be used: {self.problem}" if self.problem else self.gain
        return [one_line(cell) for cell in (self.name, self.model, self.layers, "+".join(self.trained_on), gain, size)]

    def to_json(self) -> dict[str, Any]:
        """The line as plain values."""
        return asdict(self)


def local() -> Iterator[Listed]:
    """The boosters that came with the package, and those that were pulled."""
    for entry in catalogue.entries():
        try:
            published = Publication.read(entry.name, entry.load(), entry.card, entry.results)
            origin = "package" if entry.bundled else f"{entry.origin['address']} {entry.origin.get('commit', '')[:7]}"
        except AftError as error:
            yield Listed(entry.name, problem=str(error))
            continue
        booster, provenance = published.booster, published.booster.provenance
        yield Listed(
            entry.name,
            provenance.base_model.name if provenance.base_model else "unknown",
            ranges(booster.layers),
            tuple(provenance.trained_on),
            gain(published.claims, provenance.trained_on),
            entry.file.stat().st_size,
            origin.strip(),
            booster.sha256,
        )


def remote(search: str | None = None, limit: int = 50) -> Iterator[Listed]:
    """Boosters that were published on the hub, as their cards describe them, most downloaded first.

    Args:
        search: Text that their repositories' names contain.
        limit: How many at most.

    Raises:
        HubError: The hub cannot be asked.
    """
    from huggingface_hub import HfApi

    try:
        hub.check_reachable()
        models = list(HfApi().list_models(filter=TAG, search=search, cardData=True, sort="downloads", limit=limit))
    except HubError as error:
        raise HubError(f"boosters on the hub cannot be listed: {error}") from None
    except Exception as error:
        raise HubError(f"boosters on the hub cannot be listed: {hub.explained(error, 'the list')}") from error
    for model in models:
        data = model.card_data.to_dict() if model.card_data else {}
        entry = data.get(card_header.ENTRY)
        if isinstance(entry, Mapping):
            yield _described(model.id, entry, data)


def _described(repo: str, entry: Mapping[str, Any], data: Mapping[str, Any]) -> Listed:
    trained = entry.get("trained_on")
    tasks = tuple(map(str, trained)) if isinstance(trained, list) else ()
    return Listed(
        f"{hub.SCHEME}{repo}",
        str(entry.get("model", "")),
        str(entry.get("layers", "")),
        tasks,
        gain(_rows(data), tasks),
        origin="hub",
        sha256=str(entry.get("sha256", "")),
    )


def _rows(data: Mapping[str, Any]) -> list[Row]:
    """The results in a card's metadata, as far as they are well formed, with the cells that a gain is made of."""
    found: list[Row] = []
    try:
        for model in data.get("model-index") or ():
            for result in model["results"]:
                for metric in result["metrics"]:
                    given = metric.get("args") or {}
                    numbers = {key: float(given[key]) for key in _NUMBERS}
                    names = {"task": str(result["dataset"]["type"]), "metric": str(metric["type"])}
                    found.append({**dict.fromkeys(table.COLUMNS), **names, **numbers})
    except (TypeError, KeyError, ValueError, AttributeError):
        return []
    return found


def gain(claims: Sequence[Row], trained_on: Iterable[str]) -> str:
    """The change on the first task that a booster learned from and that was evaluated."""
    for task in trained_on:
        for row in claims:
            if row["task"] == task:
                cells = table.cells({**row, "strength": 1.0})
                return f"{cells['metric']} {cells['change [95% interval]']}"
    return "not evaluated" if not claims else "not evaluated on it"


def render(listed: Sequence[Listed]) -> str:
    """The list as an aligned table."""
    return aligned([COLUMNS, *(each.cells for each in listed)], [name != "size" for name in COLUMNS])
