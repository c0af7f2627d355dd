"""Pairs as a task of lm-eval: its metrics against a plain loop over the model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from harness_cases import booster

from aft_harness.boosters.variant import BASELINE, Variant
from aft_harness.engine.steering import Steering
from aft_harness.harness.evaluation import evaluate
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.pair_task import Rendered, pair_task
from aft_harness.harness.selection import PromptFormat
from aft_harness.harness.tasks import Tasks

PAIRS = [
    Rendered(
        "a", "The child opens", (" the door<eos>", " and walks to school<eos>"), (" the door", " and walks to school")
    ),
    Rendered("b", "{{question}} She", (" looks<eos>", " sits<eos>"), (" looks", " sits")),
    Rendered("c", "", ("Plants<eos>", "Water<eos>"), ("Plants", "Water")),
]


@pytest.fixture(scope="module")
def lm(tiny_model: Any, tiny_tokenizer: Any) -> SteeredHFLM:
    return SteeredHFLM(pretrained=tiny_model("llama"), tokenizer=tiny_tokenizer)


def plain_loglikelihood(lm: SteeredHFLM, context: str, text: str) -> float:
    request = lm.encode(context, text)
    tokens = torch.tensor([[*request.context, *request.continuation]])
    logprobs = lm.model(tokens).logits.log_softmax(-1)[0]
    start = len(request.context)
    return float(sum(logprobs[place - 1, tokens[0, place]] for place in range(start, tokens.shape[1])))


def evaluated(lm: SteeredHFLM, task: Any, variants: list[Variant]) -> list[list[dict[str, Any]]]:
    source = Tasks()
    source.add("mine", task)
    asked = PromptFormat(num_fewshot=2, system_instruction="Be brief.")  # neither of which is for pairs
    found = evaluate(lm, variants, ["mine"], asked, source=source)
    return [each.results["samples"]["mine"] for each in found]


def test_metrics_are_those_of_a_plain_loop(lm: SteeredHFLM) -> None:
    steered = Variant("v", booster())
    every = evaluated(lm, pair_task("mine", "1", PAIRS), [BASELINE, steered])
    for variant, samples in zip((BASELINE, steered), every, strict=True):
        for pair, sample in zip(PAIRS, samples, strict=True):
            steering = Steering(lm.model, variant.booster or booster(), variant.strength if variant.booster else 0.0)
            with steering, torch.no_grad():
                chosen, rejected = (plain_loglikelihood(lm, pair.context, text) for text in pair.continuations)
            assert sample["margin"] == pytest.approx(chosen - rejected, abs=1e-4)
            assert sample["acc"] == float(chosen > rejected)
            assert sample["acc_norm"] == float(chosen / len(pair.texts[0]) > rejected / len(pair.texts[1]))
            assert sample["metrics"] == ["acc", "acc_norm", "margin"]
    assert [each["margin"] for each in every[0]] != [each["margin"] for each in every[1]]


def test_texts_alone_are_measured_in_bits_per_byte(lm: SteeredHFLM) -> None:
    alone = [Rendered(pair.question, pair.context, pair.continuations[:1], ("é",)) for pair in PAIRS]
    (samples,) = evaluated(lm, pair_task("mine", "1", alone), [BASELINE])
    for pair, sample in zip(alone, samples, strict=True):
        with torch.no_grad():
            expected = -plain_loglikelihood(lm, pair.context, pair.continuations[0]) / math.log(2) / 2
        assert sample["bits_per_byte"] == pytest.approx(expected, abs=1e-4)
        assert sample["metrics"] == ["bits_per_byte"]
