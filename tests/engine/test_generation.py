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


def test_only_the_generated_text_ends_it(tiny_tokenizer: Any) -> None:
    prompt, text = tiny_tokenizer.encode("stop "), tiny_tokenizer.encode("go on and stop")
    rows = torch.tensor([[*prompt, *text], [*prompt, *text[:-1], text[0]]])
    finished = PerTextStoppingCriteria(tiny_tokenizer, ["stop"], len(prompt))
    assert not finished(rows[:, : len(prompt) + 1], None).any()  # what stands in the prompt does not count
    found = finished(rows, None)
    assert found.tolist() == ["stop" in tiny_tokenizer.decode(row[len(prompt) :].tolist()) for row in rows]
    assert found.tolist()[0]
    # The rows may be others at the next step: nothing is remembered.
    assert finished(rows.flip(0), None).tolist() == found.flip(0).tolist()


def test_what_only_the_last_tokens_say_does_not_end_a_text(tiny_tokenizer: Any) -> None:
    class Odd:
        """Reads the end of a text otherwise than the text."""

        def encode(self, text: str, **_: Any) -> list[int]:
            return [1]

        def batch_decode(self, rows: Any) -> list[str]:
            return ["stop" for _ in rows]

        def decode(self, row: Any) -> str:
            return "go on"

    assert not PerTextStoppingCriteria(Odd(), ["stop"], 0)(torch.zeros(2, 5, dtype=torch.long), None).any()


class Scripted(torch.nn.Module):
    """Puts a fixed continuation after each prompt: logits of the tiny model are replaced, its `generate` is real."""

    def __init__(self, model: Any, scripts: dict[int, list[int]], prompt_length: int) -> None:
        super().__init__()
        self.handle = model.lm_head.register_forward_hook(self._hook)
        self.scripts, self.prompt_length, self.step = scripts, prompt_length, 0
        self.reset = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: Any, kwargs: Any) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        self.step = 0 if ids is not None and ids.shape[1] > 1 else self.step + 1

    def _hook(self, module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        output = torch.full_like(output, -10.0)
        for row in range(len(output)):
            script = self.scripts[row % len(self.scripts)]
            output[row, -1, script[min(self.step, len(script) - 1)]] = 10.0
        return output


@pytest.fixture
def chat(tiny_model: Any, tiny_tokenizer: Any) -> tuple[Any, Any, Any]:
    """A model that writes `water<eos> light light ...` whatever is asked; its generation ends at another token."""
    model = tiny_model("llama")
    model.generation_config.eos_token_id = (
        0  # as of a chat model whose configuration names another end than its tokenizer
    )
    water, light = (tiny_tokenizer.encode(f" {word}", add_special_tokens=False) for word in ("water", "light"))
    script = [*water, tiny_tokenizer.eos_token_id, *light * 4]
    return model, tiny_tokenizer, Scripted(model, {0: script}, 0)


@pytest.mark.parametrize("until", [[], ["<eos>"], ["."], ["<bos>", "."]])
@pytest.mark.parametrize("ends_at", [0, [0, 2], 2])
def test_special_tokens_end_a_text(chat: Any, until: list[str], ends_at: Any) -> None:
    model, tokenizer, _ = chat
    model.generation_config.eos_token_id = ends_at
    texts = []
    for kind, batch_size in ((HFLM, 1), (SteeredHFLM, 1), (SteeredHFLM, 5)):
        lm = kind(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        texts.append(lm.generate_until(requests(until=until)))
    assert texts[0] == texts[1] == texts[2] == [" water"] * 5


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 4},
        {"num_beams": 4, "length_penalty": 0.2},
        {"num_beams": 2, "do_sample": True, "temperature": 0.9},
        {"do_sample": True, "temperature": 1.3},
        {"do_sample": True, "temperature": 1.3, "top_k": 5},
        {"temperature": 0.8, "do_sample": True},
    ],
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_beams_and_samples_are_those_of_stock(
    tiny_model: Any, tiny_tokenizer: Any, settings: dict[str, Any], batch_size: int
) -> None:
    model = tiny_model("llama")
    whole = HFLM(pretrained=model, tokenizer=tiny_tokenizer, batch_size=5).generate_until(requests(until=[]))
    ends = sorted({text[len(text) // 2 :][:1] for text in whole if len(text) > 4})[:3]
    texts = []
    for kind in (HFLM, SteeredHFLM):
        lm = kind(pretrained=model, tokenizer=tiny_tokenizer, batch_size=batch_size)
        torch.manual_seed(0)
        texts.append(lm.generate_until(requests(until=ends, **settings)))
    assert texts[0] == texts[1]
    assert any(texts[0])


def test_stop_strings_across_tokens_and_in_the_prompt(tiny_model: Any, tiny_tokenizer: Any) -> None:
    model = tiny_model("gpt2")
    whole = HFLM(pretrained=model, tokenizer=tiny_tokenizer, batch_size=1).generate_until(requests(until=[]))
    across = sorted({text[3:8] for text in whole if len(text) > 12})
    for until in (across, ["child"], ["the child walks home"], [" "]):
        stock = HFLM(pretrained=model, tokenizer=tiny_tokenizer, batch_size=1).generate_until(requests(until=until))
        for batch_size in (1, 5):
            ours = SteeredHFLM(pretrained=model, tokenizer=tiny_tokenizer, batch_size=batch_size)
            assert ours.generate_until(requests(until=until)) == stock
