from __future__ import annotations

from typing import Any

import pytest
import torch

from aft_harness.boosters.booster import Booster
from aft_harness.engine.continuous import Writer
from aft_harness.engine.decoder import decoder_layers
from aft_harness.engine.scoring import Engine
from aft_harness.engine.steering import Steering
from aft_harness.engine.text_batch import Manner, Prompt

SHARED = tuple(range(10, 40))
PROMPTS = [(*SHARED, 50, 51), (60, 61), (*SHARED, 70), (*SHARED, 80, 81, 82, 83), (3,), (60, 62, 63)]

ARCHITECTURES = ["gemma", "gpt2", "gpt_neox", "granite", "llama", "mistral", "mixtral", "olmo2", "opt", "phi", "phi3"]
ARCHITECTURES += ["qwen2", "qwen3", "starcoder2"]


def writer(model: Any) -> Writer:
    return Writer(Engine(model, decoder_layers(model), torch.device("cpu")))


@torch.no_grad()
def alone(model: Any, tokens: tuple[int, ...], limit: int, ends: frozenset[int]) -> tuple[int, ...]:
    """Greedy continuation by a plain loop without a cache."""
    found: list[int] = []
    while len(found) < limit and not (found and found[-1] in ends):
        logits = model(torch.tensor([[*tokens, *found]]), use_cache=False).logits[0, -1]
        found.append(int(logits.argmax()))
    return tuple(found)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_texts_are_those_of_a_plain_loop(tiny_model: Any, architecture: str) -> None:
    model = tiny_model(architecture)
    limits = [9, 4, 12, 1, 7, 12]
    prompts = [Prompt(tokens, limit) for tokens, limit in zip(PROMPTS, limits, strict=True)]
    free = [alone(model, prompt.tokens, prompt.limit, frozenset()) for prompt in prompts]
    ends = frozenset({free[2][5]})  # a token that does end a text, and others not
    expected = [alone(model, prompt.tokens, prompt.limit, ends) for prompt in prompts]
    writes = writer(model)
    assert writes.writes(prompts)
    for rows in (1, 2, 16):
        texts = writes.write(prompts, Manner(ends=ends), rows)
        assert [text.tokens for (text,) in texts] == expected
        assert [text.ended for (text,) in texts] == [tokens[-1] in ends for tokens in expected]
    assert model.config._attn_implementation != "aft_shared"


@pytest.mark.parametrize("architecture", ["mamba", "bloom", "falcon", "gptj", "gemma2", "gemma3_text"])
def test_other_models_are_refused(tiny_model: Any, architecture: str, caplog: Any) -> None:
    """Recurrent ones, those with an attention of their own, and windows shorter than the texts."""
    assert not writer(tiny_model(architecture)).writes([Prompt(PROMPTS[0], 5)])
    assert not [record for record in caplog.records if "attention" in record.getMessage()]


def test_a_window_that_the_texts_fit_in_is_none(tiny_model: Any) -> None:
    model = tiny_model("mistral", sliding_window=40)
    assert writer(model).writes([Prompt(PROMPTS[0], 8)])
    assert not writer(model).writes([Prompt(PROMPTS[0], 9)])


def test_steering_applies_to_prompts_and_texts(tiny_model: Any) -> None:
    model = tiny_model("llama")
    booster = Booster.static({1: torch.randn(32, generator=torch.Generator().manual_seed(0)) * 3})
    prompts = [Prompt(tokens, 8, (0, 1)) for tokens in PROMPTS[:4]]
    with Steering(model, booster):
        expected = [alone(model, prompt.tokens, 8, frozenset()) for prompt in prompts]
        texts = writer(model).write(prompts, Manner(), 4)
    plain = [alone(model, prompt.tokens, 8, frozenset()) for prompt in prompts]
    assert [[text.tokens for text in each] for each in texts] == [[tokens] * 2 for tokens in expected]
    assert expected != plain


def test_a_shared_prefix_is_read_once_and_the_batch_stays_full(tiny_model: Any) -> None:
    model = tiny_model("llama")
    shapes: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    tails = [(number, number + 1, number + 2) for number in range(8)]
    prompts = [Prompt((*SHARED, *tail), 3 + tail[0] % 5, tuple(range(4))) for tail in tails]
    writer(model).write(prompts, Manner(temperature=1.0), 2)
    read = [rows * width for rows, width in shapes if width > 1]
    assert sum(read) <= len(SHARED) + 8 * 2  # every prompt once, however many texts follow it
    written = [rows for rows, width in shapes if width == 1]
    assert sum(written) == sum(4 * prompt.limit for prompt in prompts)
    assert max(written) > 2  # texts that share most of what they hold: more of them than rows


def test_samples_depend_on_their_seed_and_not_on_the_batch(tiny_model: Any) -> None:
    model = tiny_model("llama")
    prompts = [Prompt(tokens, 10, (7, 8, 7)) for tokens in PROMPTS]
    together = writer(model).write(prompts, Manner(temperature=1.0), 16)
    for prompt, texts in zip(prompts, together, strict=True):
        (by_themselves,) = writer(model).write([prompt], Manner(temperature=1.0), 1)
        assert by_themselves == texts
        assert texts[0] == texts[2] != texts[1]


def test_a_text_is_finished_when_the_caller_says_so(tiny_model: Any) -> None:
    seen: list[tuple[int, int]] = []
    prompts = [Prompt(tokens, 10) for tokens in PROMPTS]
    manner = Manner(finished=lambda texts: [len(text) == 4 for text in texts])
    texts = writer(tiny_model("llama")).write(
        prompts, manner, 3, lambda index, sample, text: seen.append((index, sample))
    )
    assert all(len(text.tokens) == 4 and text.ended for (text,) in texts)
    assert sorted(seen) == [(index, 0) for index in range(len(PROMPTS))]
