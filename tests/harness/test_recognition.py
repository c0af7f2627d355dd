"""The documents of a digest are found again, against the samples that lm-eval itself wrote."""

from __future__ import annotations

from typing import Any

import pytest
from harness_cases import TOYS

import aft_harness
from aft_harness.harness.recognition import document_hash, located
from aft_harness.harness.tasks import Tasks
from aft_harness.results.pairing import Asked
from aft_harness.slices import Slice


@pytest.mark.parametrize("docs", ["0:12", "0:4", "3:9", "11:12"])
def test_documents_are_found_by_the_digest_of_their_samples(tiny_checkpoint: Any, docs: str) -> None:
    found = aft_harness.evaluate(
        tiny_checkpoint("llama"), tasks="toy_choice", docs=docs, include_path=[TOYS], model_args={"device": "cpu"}
    )
    samples = found.variants[0].results["samples"]["toy_choice"]
    task = Tasks([TOYS]).leaves(["toy_choice"])["toy_choice"]
    assert samples[0]["doc_hash"] == document_hash(task.eval_docs[samples[0]["doc_id"]])
    wanted = Slice.parse(docs)
    asked = Asked.of(samples)
    assert located(task, len(samples), asked.documents) == wanted
    assert located(task, len(samples), asked.prompts) is None and located(task, 13, asked.documents) is None
