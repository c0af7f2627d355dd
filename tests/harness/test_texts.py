"""Texts under each variant are those of transformers around the same steering."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from harness_cases import booster

from aft_harness.boosters.variant import BASELINE, Variant
from aft_harness.engine.steering import Steering
from aft_harness.errors import BoosterError, ModelError
from aft_harness.harness import texts
from aft_harness.harness.model import SteeredHFLM

CHAT = "{% for m in messages %}<{{m['role']}}>{{m['content']}}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
PROMPT = "The child opens the door"


@pytest.fixture
def lm(tiny_model: Any, tiny_tokenizer: Any) -> SteeredHFLM:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = CHAT
    return SteeredHFLM(pretrained=tiny_model("llama"), tokenizer=tokenizer)


def plain(lm: SteeredHFLM, variant: Variant, prompt: str = PROMPT, **sampling: Any) -> str:
    inputs = torch.tensor([lm.tok_encode(prompt)])
    torch.manual_seed(3)
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0, **sampling}
    if variant.booster is None:
        tokens = lm.model.generate(inputs, **settings)
    else:
        with Steering(lm.model, variant.booster, variant.strength):
            tokens = lm.model.generate(inputs, **settings)
    return str(lm.tokenizer.decode(tokens[0, inputs.shape[1] :], skip_special_tokens=True))


@pytest.mark.parametrize("sampled", [False, True])
def test_each_variant_writes_its_own_text_piece_by_piece(lm: SteeredHFLM, sampled: bool) -> None:
    variants = [BASELINE, Variant("a", booster(), 2.0), Variant("b", booster(2))]
    pieces: dict[str, list[str]] = {}
    written = texts.write(
        lm,
        PROMPT,
        variants,
        max_new_tokens=12,
        temperature=0.7 if sampled else 0.0,
        seed=3,
        on_text=lambda variant, piece: pieces.setdefault(variant.name, []).append(piece),
    )
    sampling = {"do_sample": True, "temperature": 0.7} if sampled else {}
    assert written == [plain(lm, variant, **sampling) for variant in variants]
    assert len(set(written)) == 3
    assert ["".join(pieces[variant.name]) for variant in variants] == written


def test_a_message_goes_through_the_chat_template(lm: SteeredHFLM) -> None:
    assert texts.chat_prompt(lm, "Hi") == "<user>Hi<a>"
    assert texts.chat_prompt(lm, "Hi", "Be short.") == "<system>Be short.<user>Hi<a>"
    lm.tokenizer.chat_template = None
    with pytest.raises(ModelError, match="has no chat template"):
        texts.chat_prompt(lm, "Hi")


def test_what_cannot_be_written_is_one_line(lm: SteeredHFLM) -> None:
    with pytest.raises(ModelError, match=r"a prompt of \d+ tokens and 250 new ones are more than the model's 256"):
        texts.write(lm, PROMPT, [BASELINE], max_new_tokens=250)
    with pytest.raises(BoosterError, match="out of range"):
        texts.write(lm, PROMPT, [BASELINE, Variant("a", booster(9))])
    assert texts.write(lm, "", [BASELINE], max_new_tokens=3)
