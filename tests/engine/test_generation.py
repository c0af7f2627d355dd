from __future__ import annotations

from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from aft_harness.boosters.booster import Booster
from aft_harness.engine.generation import PerTextStoppingCriteria
from aft_harness.harness.model import SteeredHFLM

PROMPTS = [
    "the child walks home",
    "a door",
    "night and light in the cold room of the school",
    "water plants",
    "an apple",
]


def requests(**settings: Any) -> list[Instance]:
    return [
        Instance("generate_until", {}, (prompt, {"max_gen_toks": 24, **settings}), place)
        for place, prompt in enumerate(PROMPTS)
    ]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral", "gemma3_text", "bloom", "mamba"])
def test_texts_are_those_of_stock(tiny_model: Any, tiny_tokenizer: Any, architecture: str) -> None:
    model = tiny_model(architecture)
    stock = HFLM(pretrained=model, tokenizer=tiny_tokenizer, batch_size=5)
    ours = SteeredHFLM(pretrained=model, tokenizer=tiny_tokenizer, batch_size=5)
    whole = stock.generate_until(requests(until=[]))
    # Strings that do come, in the middle of some texts and not of others.
    ends = sorted({text[len(text) // 2 :][:2] for text in whole if len(text) > 4})
    for settings in ({"until": ends[:1]}, {"until": ends}, {"until": []}, {"until": ends, "temperature": 0.0}):
        expected = stock.generate_until(requests(**settings))
        assert ours.generate_until(requests(**settings)) == expected
    assert stock.generate_until(requests(until=ends)) != whole


def test_a_batch_ends_with_its_last_text(tiny_model: Any, tiny_tokenizer: Any) -> None:
    """One text ends by one string and another by another: stock goes on to the longest, and we do not."""
    steps: list[int] = []
    model = tiny_model("llama")
    model.register_forward_pre_hook(lambda module, args: steps.append(1))
    whole = SteeredHFLM(pretrained=model, tokenizer=tiny_tokenizer, batch_size=5).generate_until(requests(until=[]))
    ends = [text[2:4] for text in whole if len(text) > 6]
    assert len(set(ends)) > 1
    lengths = []
    for kind in (HFLM, SteeredHFLM):
        lm = kind(pretrained=model, tokenizer=tiny_tokenizer, batch_size=5)
        steps.clear()
        lm.generate_until(requests(until=ends))
        lengths.append(len(steps))
    assert lengths[1] < lengths[0]


def test_generation_is_steered_and_sampling_is_left_alone(tiny_model: Any, tiny_tokenizer: Any) -> None:
    model = tiny_model("llama")
    generator = torch.Generator().manual_seed(0)
    booster = Booster.static({1: torch.randn(32, generator=generator) * 3})
    plain = SteeredHFLM(pretrained=model, tokenizer=tiny_tokenizer, batch_size=5)
    steered = SteeredHFLM(pretrained=model, tokenizer=tiny_tokenizer, vector=booster, batch_size=5)
    assert steered.generate_until(requests(until=[])) != plain.generate_until(requests(until=[]))
    stock = HFLM(pretrained=model, tokenizer=tiny_tokenizer, batch_size=5)
    sampled = []
    for lm in (stock, plain):
        torch.manual_seed(0)
        sampled.append(lm.generate_until(requests(until=[], do_sample=True, temperature=0.7)))
    assert sampled[0] == sampled[1]


def test_only_the_text_itself_ends_it(tiny_tokenizer: Any) -> None:
    prompt, text = tiny_tokenizer.encode("stop "), tiny_tokenizer.encode("go on and stop")
    rows = torch.tensor([[*prompt, *text], [*prompt, *text[:-1], text[0]]])
    finished = PerTextStoppingCriteria(tiny_tokenizer, tiny_tokenizer.decode, ["stop"], len(prompt))
    assert not finished(rows[:, : len(prompt) + 1], None).any()  # what stands in the prompt does not count
    found = finished(rows, None)
    assert found.tolist() == ["stop" in tiny_tokenizer.decode(row[len(prompt) :].tolist()) for row in rows]
    assert found.tolist()[0]
    never = PerTextStoppingCriteria(tiny_tokenizer, lambda tokens: "", ["stop"], len(prompt))
    assert not never(rows, None).any()
