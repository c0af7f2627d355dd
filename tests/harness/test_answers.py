"""Answers as bytes: they come back to the last bit, and nothing else is taken for them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from safetensors.numpy import save

from aft_harness.errors import CacheError
from aft_harness.harness.answers import Answers
from aft_harness.harness.score_store import key_of

KEYS = [key_of("model", str(place)) for place in range(4)]


def test_answers_come_back_and_what_was_known_is_left_out() -> None:
    first = Answers()
    first.put({KEYS[0]: (-math.pi, True), KEYS[1]: (-1e-300, False)})
    first.put_texts({KEYS[2]: "ä\n\0 \U0001f600"})
    back = Answers.of(first.new())
    assert back.get(KEYS) == {KEYS[0]: (-math.pi, True), KEYS[1]: (-1e-300, False)}
    assert back.get_texts(KEYS) == {KEYS[2]: "ä\n\0 \U0001f600"} and back.count == 3
    second = Answers([back])
    second.put({KEYS[0]: (-math.pi, True), KEYS[3]: (-2.0, False)})
    assert Answers.of(second.new()).get(KEYS) == {KEYS[3]: (-2.0, False)} and second.count == 4
    assert Answers.of(Answers().new()).count == 0


def test_what_is_no_file_of_answers_is_refused() -> None:
    whole = Answers()
    whole.put({KEYS[0]: (-1.0, True)})
    data = whole.new()
    parts = {"score_keys": np.zeros((1, 20), np.uint8), "text_keys": np.zeros((0, 20), np.uint8)}
    texts, greedy = np.frombuffer(b"[]", np.uint8), np.zeros(1, np.uint8)
    for bad in (
        b"",
        data[:-3],
        b"pickle" + data,
        save({"scores": np.zeros(1)}),
        save({**parts, "scores": np.full(1, np.nan), "greedy": greedy, "texts": texts}),
        save({**parts, "scores": np.zeros(2), "greedy": greedy, "texts": texts}),
        save({**parts, "scores": np.zeros(1), "greedy": greedy, "texts": np.frombuffer(b"[1]", np.uint8)}),
    ):
        with pytest.raises(CacheError, match="not a file of answers"):
            Answers.of(bad)
