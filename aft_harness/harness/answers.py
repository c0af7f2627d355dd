"""Answers in memory, and as bytes that go from one machine to another.

Found by the same keys as those of `ScoreStore`. Knows nothing of who computes them. The bytes are safetensors: nothing
is ever unpickled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from aft_harness.errors import CacheError
from aft_harness.harness.score_store import Result

_KEY = 20
"""Bytes of a key, see `score_store.key_of`."""


class Answers:
    """Scores and texts by key."""

    def __init__(self, known: Iterable[Answers] = ()) -> None:
        """Starts with what others hold, which `new` leaves out."""
        self._scores: dict[bytes, Result] = {}
        self._texts: dict[bytes, str] = {}
        for each in known:
            self._scores |= each._scores
            self._texts |= each._texts
        self._known = {*self._scores, *self._texts}

    @property
    def count(self) -> int:
        """Number of answers."""
        return len(self._scores) + len(self._texts)

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Result]:
        """The scores of those keys that are there."""
        return {key: self._scores[key] for key in keys if key in self._scores}

    def get_texts(self, keys: Sequence[bytes]) -> dict[bytes, str]:
        """The texts of those keys that are there."""
        return {key: self._texts[key] for key in keys if key in self._texts}

    def put(self, results: Mapping[bytes, Result]) -> None:
        """Adds scores."""
        self._scores |= results

    def put_texts(self, texts: Mapping[bytes, str]) -> None:
        """Adds texts."""
        self._texts |= texts

    def new(self) -> bytes:
        """What was added, as bytes."""
        scores = {key: score for key, score in self._scores.items() if key not in self._known}
        texts = {key: text for key, text in self._texts.items() if key not in self._known}
        listed = json.dumps(list(texts.values())).encode()
        return save(
            {
                "score_keys": _packed(scores),
                "scores": np.array([score for score, _ in scores.values()], dtype=np.float64),
                "greedy": np.array([greedy for _, greedy in scores.values()], dtype=np.uint8),
                "text_keys": _packed(texts),
                "texts": np.frombuffer(listed, dtype=np.uint8),
            }
        )

    @classmethod
    def of(cls, data: bytes) -> Answers:
        """What `new` made bytes of.

        Raises:
            CacheError: The bytes are something else, or a part of them is missing.
        """
        found = cls()
        try:
            parts = load(data)
            scores = zip(parts["scores"].tolist(), map(bool, parts["greedy"].tolist()), strict=True)
            found._scores = dict(zip(_unpacked(parts["score_keys"]), scores, strict=True))
            texts = json.loads(parts["texts"].tobytes())
            found._texts = dict(zip(_unpacked(parts["text_keys"]), texts, strict=True))
            sound = all(map(math.isfinite, (score for score, _ in found._scores.values())))
            if not sound or not all(isinstance(text, str) for text in found._texts.values()):
                raise ValueError("not answers")
        except (SafetensorError, KeyError, ValueError, TypeError, AttributeError):
            raise CacheError("not a file of answers, or an incomplete one") from None
        return found


def _packed(entries: Mapping[bytes, object]) -> np.ndarray:
    return np.frombuffer(b"".join(entries), dtype=np.uint8).reshape(len(entries), _KEY)


def _unpacked(keys: np.ndarray) -> list[bytes]:
    data = keys.tobytes()
    return [data[start : start + _KEY] for start in range(0, len(data), _KEY)]
