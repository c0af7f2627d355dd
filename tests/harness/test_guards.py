from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from harness_cases import booster, requests
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM

from aft_harness.boosters.documents import text_hash
from aft_harness.boosters.variant import BASELINE, Variant
from aft_harness.engine.scoring import Request
from aft_harness.errors import CacheError, TaskError
from aft_harness.harness import guards
from aft_harness.harness.model import SteeredHFLM


def test_a_response_cache_of_another_run_is_refused(tiny_checkpoint: Any, tmp_path: Path) -> None:
    folder = str(tiny_checkpoint("llama"))

    def cached(lm: HFLM, name: str) -> list[tuple[float, bool]]:
        return CachingLM(lm, str(tmp_path / name)).loglikelihood(requests())

    def ours(**kwargs: Any) -> SteeredHFLM:
        return SteeredHFLM(pretrained=folder, device="cpu", batch_size=4, **kwargs)

    first = cached(ours(), "base.db")
    assert cached(ours(), "base.db") == first
    with pytest.raises(CacheError, match=r"base\.db: this response cache was written with booster none"):
        cached(ours(vector=booster()), "base.db")
    steered = cached(ours(vector=booster()), "steered.db")
    assert cached(ours(vector=booster()), "steered.db") == steered != first
    for other in (ours(vector=booster(), scale=0.5), ours(vector=booster(2)), ours(), ours(dtype="bfloat16")):
        with pytest.raises(CacheError, match="use a new path"):
            cached(other, "steered.db")
    cached(HFLM(pretrained=folder, device="cpu"), "hf.db")
    with pytest.raises(CacheError, match=r"hf\.db: this response cache was not written by steered-hf"):
        cached(ours(), "hf.db")


def test_it_warns_of_training_documents(tiny_checkpoint: Any, caplog: pytest.LogCaptureFixture) -> None:
    documents = [{"question": f"What is {n}?"} for n in range(6)]
    asked = [
        Instance("loglikelihood", doc, ("Question: " + doc["question"], f" {n}"), n, metadata=("toy", i, 1))
        for i, doc in enumerate(documents)
        for n in range(2)
    ]
    trained = booster(documents={"hashes": [text_hash("what is 1"), text_hash("WHAT IS 4?"), "0" * 16]})
    lm = SteeredHFLM(pretrained=str(tiny_checkpoint("llama")), vector=trained, device="cpu")
    with caplog.at_level(logging.WARNING, "aft_harness"):
        lm.loglikelihood(asked)
    assert "2 of 6 documents of toy are among the booster's training documents" in caplog.text


def test_it_warns_of_another_base_model(tiny_checkpoint: Any, caplog: pytest.LogCaptureFixture) -> None:
    folder = str(tiny_checkpoint("llama"))
    base = SteeredHFLM(pretrained=folder, device="cpu").base_model.model_dump()
    with caplog.at_level(logging.WARNING, "aft_harness"):
        SteeredHFLM(pretrained=folder, device="cpu", dtype="bfloat16", vector=booster(base_model=base))
        assert "expect no gain" not in caplog.text
        SteeredHFLM(pretrained=str(tiny_checkpoint("llama", seed=5)), vector=booster(base_model=base))
    assert "the booster was made for" in caplog.text
    caplog.clear()
    lm = SteeredHFLM(pretrained=str(tiny_checkpoint("llama", seed=5)), device="cpu")
    with caplog.at_level(logging.WARNING, "aft_harness"):
        for strength in (1.0, 2.0):  # as an evaluation of several variants does
            lm.steering_for(Variant("a", booster(base_model=base), strength))
    assert caplog.text.count("expect no gain") == 1


def test_letters_that_begin_alike_are_refused() -> None:
    alike = [Request((5,), (9, 10)), Request((5,), (9, 11))]
    with pytest.raises(TaskError, match="aft_hellaswag_letter: this tokenizer encodes several"):
        guards.check_letters("aft_hellaswag_letter", alike)
    guards.check_letters("mmlu_letters", alike)  # other tasks are scored by whole continuations
    guards.check_letters("aft_hellaswag_letter", [Request((5,), (9, 10)), Request((5,), (8, 10))])


def test_letters_of_an_evaluation_are_checked_task_by_task() -> None:
    def asked(task: str, letters: str) -> list[Instance]:
        return [
            Instance("loglikelihood", {}, ("The answer is", f" {letter}"), place, metadata=(task, 0, 1))
            for place, letter in enumerate(letters)
        ]

    apart = [*asked("aft_a_letter", "ABCD"), *asked("aft_b_letter", "ABCD"), *asked("other", "AAAA")]
    guards.check_letter_requests(apart, lambda context, letter: Request((5,), (ord(letter[1]),)))
    alike = [*asked("other", "AAAA"), *asked("aft_b_letter", "ABCD")]
    with pytest.raises(TaskError, match="task aft_b_letter: this tokenizer encodes several"):
        guards.check_letter_requests(alike, lambda context, letter: Request((5,), (9,)))


def test_a_missing_list_of_documents_is_said(caplog: pytest.LogCaptureFixture) -> None:
    guard = guards.TrainingDocumentGuard()
    lossy = Variant("a", booster(documents={"count": 2001, "sidecar": True}))
    with caplog.at_level(logging.WARNING, "aft_harness"):
        guard.check(lossy, [])
    assert "the list of the booster's 2001 training documents is missing" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "aft_harness"):
        guard.check(BASELINE, requests())
        guard.check(Variant("a", booster()), requests())
    assert not caplog.text
