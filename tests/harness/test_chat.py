"""Chat messages through a template, and templates that refuse them."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from aft_harness.errors import ModelError
from aft_harness.harness.chat import chat_text
from aft_harness.harness.model import SteeredHFLM

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ raise_exception('No system message,\\nplease') }}{% endif %}"
    "[{{ message.role }}] {{ message.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
USER, ANSWER = {"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat"}


def test_messages_end_where_the_answer_begins_or_with_it(tiny_model: Any, tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = TEMPLATE
    lm = SteeredHFLM(pretrained=tiny_model("llama"), tokenizer=tokenizer)
    assert chat_text(lm, [USER]) == "[user] What?\n[assistant] " == lm.apply_chat_template([USER])
    assert chat_text(lm, [USER, ANSWER], answered=True) == "[user] What?\n[assistant] A cat\n"
    with pytest.raises(ModelError, match=r"the chat template refuses these messages \(No system message, please\)"):
        chat_text(lm, [{"role": "system", "content": "Be brief."}, USER])
    lm.tokenizer.chat_template = None
    with pytest.raises(ModelError, match=r"the tokenizer of .* has no chat template"):
        chat_text(lm, [USER])
