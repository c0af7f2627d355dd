"""Where cells run, and what workers get: words and numbers."""

from __future__ import annotations

from typing import Any

import pytest

from aft_harness.errors import ParseError, TaskError
from aft_harness.studies.workers import Place, Workers, shares


def test_places_are_read() -> None:
    for text, place in (
        ("ray", Place()),
        ("local:3", Place(count=3)),
        ("ray://head:10001", Place(address="ray://head:10001")),
        ("ray://10.0.0.1", Place(address="ray://10.0.0.1")),
    ):
        assert Place.parse(text) == place and str(place) == text
    for text in ("", "local", "local:0", "local:x", "ray:", "ray://", "ray://a/b", "slurm", "local:99999"):
        with pytest.raises(ParseError, match="expected ray, ray://HOST"):
            Place.parse(text)


def test_what_workers_get_is_read() -> None:
    assert Workers.of({}) == Workers()
    assert Workers.of({"count": 4, "cpus": 2, "gpus": 0.5, "documents": 100}) == Workers(4, 2, 0.5, 100)
    wrong: list[tuple[Any, str]] = [
        ([], "expected any of count, cpus, gpus, documents"),
        ({"memory": 1}, "expected any of"),
        ({"count": 0}, "count 0 is not a whole number of at least 1"),
        ({"cpus": 1.5}, "cpus 1.5 is not"),
        ({"documents": True}, "documents True is not"),
        ({"gpus": -1}, "gpus -1 is neither"),
        ({"gpus": 1.5}, "gpus 1.5 is neither"),
        ({"gpus": "one"}, "gpus 'one' is neither"),
    ]
    for content, reason in wrong:
        with pytest.raises(TaskError, match=reason):
            Workers.of(content)


def test_an_evaluation_is_cut_by_its_documents_and_never_for_one_worker() -> None:
    assert shares(10_000, False, 1) == 1
    assert shares(100, False, 8) == 1
    assert shares(1000, False, 8) == 4
    assert shares(1000, True, 8) == 16  # two for each worker at most
    assert shares(6, False, 2, of_a_share=2) == 3
