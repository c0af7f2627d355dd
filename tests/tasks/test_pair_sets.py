"""The bundled pairs: what the study makes them of, no question twice, the same content on both sides."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from aft_harness.boosters.documents import text_hash
from aft_harness.harness.pair_sources import read
from aft_harness.harness.suites import folder

STUDIES = Path(__file__).parents[2] / "scripts" / "studies"


@pytest.mark.parametrize("name", ["concise", "formal"])
def test_both_texts_of_a_bundled_pair_answer_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(STUDIES))
    material = importlib.import_module("pair_material")
    pairs = read(folder() / "pairs" / f"{name}.jsonl").pairs
    answers = dict(material.questions_and_answers())
    assert len(pairs) == 150 and [pair.asked for pair in pairs] == list(answers)
    assert len({text_hash(pair.asked) for pair in pairs}) == len(pairs)
    for pair in pairs:
        assert pair.chat and all(answers[pair.asked] in text for text in pair.texts)
    made = material.as_lines(getattr(material, name)(list(answers.items())))
    assert made == (folder() / "pairs" / f"{name}.jsonl").read_text(encoding="utf-8")
    sys.modules.pop("pair_material")
