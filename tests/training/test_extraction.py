"""Boosters from activation statistics, against plain loops over texts."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from training_cases import examples, make_lm

from aft_harness.errors import ModelError, TrainingError
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.selection import PromptFormat
from aft_harness.training import extraction
from aft_harness.training.extraction import activations, function_vector, mean_difference
from aft_harness.training.objective import Outcome

SHOWN = PromptFormat(num_fewshot=1)


def plain_states(lm: SteeredHFLM, text: str, layer: int) -> torch.Tensor:
    """The oracle: one text, transformers' own record of hidden states."""
    tokens = torch.tensor([lm.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        return lm.model(tokens, output_hidden_states=True).hidden_states[layer + 1][0]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "falcon", "bloom"])
def test_the_mean_difference_is_that_of_a_plain_loop(architecture: str) -> None:
    lm = make_lm(architecture, double=False)
    task = examples(lm, prompt_format=SHOWN)
    right, wrong = [], []
    for example in task.train:
        scores = []
        for request in example.requests:
            tokens = torch.tensor([[*request.context, *request.continuation]])
            with torch.no_grad():
                logprobs = lm.model(tokens).logits[0, :-1].log_softmax(-1)
            gathered = logprobs.gather(1, tokens[0, 1:, None])[len(request.context) - 1 :]
            scores.append(float(gathered.sum()))
        mean = plain_states(lm, example.question, 2).mean(0)
        (right if scores.index(max(scores)) in example.gold else wrong).append(mean)
    assert right and wrong
    expected = torch.stack(right).mean(0) - torch.stack(wrong).mean(0)
    booster = mean_difference(lm, task)
    assert booster.layers == (2,)  # half of four
    torch.testing.assert_close(booster.tensors["layers.2.vector"], expected / expected.norm(), rtol=1e-4, atol=1e-4)
    provenance = booster.provenance
    assert (provenance.method, provenance.answered_correctly) == ("mean-difference", len(right))
    assert provenance.raw_norm == pytest.approx(float(expected.norm()), rel=1e-4)
    assert provenance.documents is not None and provenance.documents.count == len(task.train)
    assert list(provenance.documents.hashes) == sorted({example.document for example in task.train})
    assert provenance.prompting == asdict(SHOWN) and provenance.tasks == (task.record(),)


def test_the_question_alone_counts_not_its_prompt() -> None:
    example = examples(make_lm(double=False), prompt_format=SHOWN).train[0]
    assert "Answer" not in example.question and example.question.strip()
    assert len(make_lm(double=False).tok_encode(example.question)) < len(example.requests[0].context)


@pytest.mark.parametrize(("layers", "expected"), [(4, 2), (18, 16)])
def test_the_function_vector_is_that_of_a_plain_loop(layers: int, expected: int) -> None:
    lm = make_lm(double=False, config={"num_hidden_layers": layers})
    booster = function_vector(lm)
    assert booster.layers == (expected,)
    last = []
    for question in extraction.QUESTIONS:
        step = plain_states(
            lm, f"Question: {question}\nLet's think step by step to find the correct answer:\n", expected
        )[-1]
        last.append(step - plain_states(lm, f"Question: {question}\nAnswer:", expected)[-1])
    direction = torch.stack(last).mean(0)
    found = booster.tensors[f"layers.{expected}.vector"]
    torch.testing.assert_close(found, direction / direction.norm(), rtol=1e-4, atol=1e-4)
    assert booster.provenance.questions == extraction.QUESTIONS and len(extraction.QUESTIONS) == 10


def test_activations_come_back_in_order_whatever_their_lengths() -> None:
    lm = make_lm(double=False)
    sequences = [[5, 6, 7], [9] * 40, [5, 6], [5, 6, 7]]
    for found, tokens in zip(activations(lm, sequences, 1, torch.clone), sequences, strict=True):
        with torch.no_grad():
            expected = lm.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[2][0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_class_without_documents_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm(double=False)
    task = examples(lm, prompt_format=SHOWN)
    for right, what in ((True, "correctly"), (False, "incorrectly")):
        given = [Outcome(torch.tensor(1.0), right)] * len(task.train)
        with monkeypatch.context() as patch:
            patch.setattr(extraction, "outcomes", lambda *args, given=given, **kwargs: [given])
            with pytest.raises(TrainingError, match=f"all {len(task.train)} documents of toy_choice .* {what}"):
                mean_difference(lm, task)


def test_what_has_no_direction_is_refused() -> None:
    lm = make_lm(double=False)
    with pytest.raises(TrainingError, match="toy_text has no choices"):
        mean_difference(lm, examples(lm, "toy_text", prompt_format=SHOWN))
    with pytest.raises(TrainingError, match="no questions"):
        function_vector(lm, [])
    with pytest.raises(ModelError, match="layer 4 is out of range"):
        function_vector(lm, layer=4)
    with torch.no_grad():
        for layer in lm.model.model.layers:
            for parameter in layer.parameters():
                parameter.zero_()
        lm.model.model.embed_tokens.weight.zero_()
    with pytest.raises(TrainingError, match="the same activations"):
        function_vector(lm)
