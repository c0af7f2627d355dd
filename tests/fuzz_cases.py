"""What fuzzers share: a watch over what goes wrong, strange values, and damage."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from aft_harness.boosters.booster import Booster, canonical
from aft_harness.boosters.mixing import mix
from aft_harness.boosters.model_identity import ModelIdentity
from aft_harness.boosters.variant import Variant, VariantRecord
from aft_harness.errors import AftError

INPUTS = int(os.environ.get("AFT_FUZZ", "2000"))
"""Of each fuzzer."""

SECONDS = 10
"""For one input, at most."""


@contextmanager
def watched(folder: Path, text: object = "") -> Iterator[None]:
    """Passes over errors of one line; fails for other exceptions, for an input that hangs, and for files that changed.

    Args:
        folder: What must stay as it is.
        text: The input, for the report.
    """

    def late(*_: object) -> None:
        pytest.fail(f"more than {SECONDS} seconds for the input {text!r:.1000}")  # which no code under test catches

    before = _contents(folder)
    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    except AftError as error:
        message = str(error)
        assert message and message.isprintable() and len(message) <= 2010, (text, message)
    except Exception as error:
        pytest.fail(f"{type(error).__name__}: {str(error)[:300]!r} of the input {text!r:.1000}")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    assert _contents(folder) == before, text


def _contents(folder: Path) -> list[tuple[str, int, int]]:
    found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in os.scandir(folder)]
    return sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


STRANGE: list[Any] = [
    *(None, True, False, 0, 1, -1, 5, 2**31, 2**63, -(2**70), 10**25, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *(
        "",
        " ",
        "x",
        "1",
        "0.5",
        "nan",
        "\n",
        "\x1b[2J",
        "\u202e",
        "\x00",
        "\ud800",
        "sha256  forged\nsha256  x",
        "x" * 5000,
    ),
    *([], [[]], [None], [1, 2], ["a"], {}, {"a": 1}, {"": None}, {"a": {"b": [{}]}}, "2025-01-01", "0" * 16),
]
"""Values that a field may turn up with."""


def deep(rng: random.Random) -> Any:
    """A value nested as deep as readers may break at."""
    value: Any = 0
    for _ in range(rng.choice([3, 50, 127, 200, 400])):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def mutated(value: Any, rng: random.Random) -> Any:
    """A JSON value with one part replaced, removed or added."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        changed = dict(value)
        action = rng.random()
        if action < 0.1:
            del changed[key]
        elif action < 0.2:
            changed[rng.choice(["more", "hashes", "unlisted", "to_json", "0", "\n", key.upper()])] = strange(rng)
        else:
            changed[key] = mutated(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.85:
        index = rng.randrange(len(value))
        replaced = rng.random() < 0.9
        return [*value[:index], *([mutated(value[index], rng)] if replaced else value[index:] * 2), *value[index + 1 :]]
    return strange(rng)


def strange(rng: random.Random) -> Any:
    return deep(rng) if rng.random() < 0.03 else rng.choice(STRANGE)


def junk(rng: random.Random, pieces: list[str], most: int = 12) -> str:
    return "".join(rng.choice(pieces) for _ in range(rng.randrange(most)))


PROVENANCE: dict[str, Any] = {
    "base_model": {"name": "m", "revision": None, "fingerprint": "f" * 64, "layers": 4, "hidden_size": 4},
    "method": "aft",
    "objective": "both",
    "choice_norm": "none",
    "tasks": [{"task": "a", "version": "1", "split": "train[0:9]", "n_train": 9, "num_fewshot": 0, "weight": 1.0}],
    "prompting": {"num_fewshot": None, "apply_chat_template": False},
    "hyperparameters": {"lr": 0.05, "layers": [0, 1]},
    "training_sha256": "a" * 64,
    "seed": 3,
    "dtype": "float32",
    "epoch_losses": [1.5, 0.25],
    "measured_on": "development",
    "before": {"loss": 1.5, "accuracy": 0.5, "n": 10, "measure": "training objective"},
    "after": {"loss": 0.5, "accuracy": None, "n": 10},
    "layer_sweep": {"1": {"loss": 0.5, "n": 10}},
    "raw_norm": 12.5,
    "questions": ["Why?"],
    "answered_correctly": 7,
    "parts": [{"booster_sha256": "b" * 64, "strength": -0.5, "provenance": {"method": "aft"}}],
    "start": {"booster_sha256": "c" * 64, "provenance": {"seed": 1}},
    "versions": {"torch": "2.9"},
    "date": "2025-11-14T00:00:00+00:00",
    "licence": "MIT",
    "documents": {"count": 2, "normalisation": 2, "unlisted": 0, "hashes": ["0" * 16, "1" * 16]},
}
BASE = ModelIdentity(name="m", fingerprint="f" * 64, layers=4, hidden_size=4)


def used(booster: Booster) -> None:
    """What commands do with a booster that loaded: show it, show it as JSON, mix and save it, record it.

    Nothing of this may fail, not even in one line.
    """
    try:
        _used(booster)
    except AftError as error:
        pytest.fail(f"loaded, but {error}")


_TABLES = random.Random(8)


def _used(booster: Booster) -> None:
    from aft_harness.cli.boosters import _described, _json
    from aft_harness.results.table import COLUMNS, to_frame

    variant = Variant("a.safetensors:2", booster, 2.0)
    json.loads(_json(variant), parse_constant=pytest.fail).keys()
    assert all(isinstance(name, str) and isinstance(value, str) for name, value in _described(variant))
    mixed = mix([(booster, 0.25), (booster, 0.25)])
    canonical(mixed.provenance.to_json()).encode()
    record = VariantRecord.of(variant, BASE, "cpu", "1").to_json()
    json.dumps(record, allow_nan=False)
    if _TABLES.random() < 0.9:  # they are slow
        return
    columns = {"trained_n": record["trained_n"], "seed": record["seed"], "method": record["method"]}
    to_frame([{**dict.fromkeys(COLUMNS), **columns}])
