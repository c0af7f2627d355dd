"""A booster that was trained with the chat template and is asked without it, or the reverse, is said so once."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from harness_cases import TOYS, booster
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from aft_harness.boosters.variant import BASELINE, Variant
from aft_harness.harness.evaluation import evaluate
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.selection import PromptFormat
from aft_harness.harness.tasks import Tasks

CHAT = "{% for m in messages %}<{{m['role']}}>{{m['content']}}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"


@pytest.fixture
def arguments(tiny_model: Any, tiny_tokenizer: Any) -> dict[str, Any]:
    tiny_tokenizer.chat_template = CHAT
    return {"pretrained": tiny_model("llama", max_position_embeddings=512), "tokenizer": tiny_tokenizer}


@pytest.mark.parametrize("trained", [True, False, None])
@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("task", ["toy_choice", "toy_text"])
def test_the_stock_evaluator_and_ours_warn_where_formats_differ(
    trained: bool | None, asked: bool, task: str, arguments: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    prompting = {} if trained is None else {"prompting": {"apply_chat_template": trained, "num_fewshot": None}}
    steered = booster(**prompting)
    due = trained is not None and trained != asked
    words = "with the chat template but is evaluated without it" if trained else "without the chat template but is"
    with caplog.at_level(logging.WARNING, "aft_harness"):
        lm = SteeredHFLM(vector=steered, **arguments)
        manager = TaskManager(include_path=TOYS)
        simple_evaluate(lm, tasks=[task], task_manager=manager, limit=2, apply_chat_template=asked, bootstrap_iters=0)
    assert caplog.text.count(words) == caplog.text.count("the chat template") == int(due)
    caplog.clear()
    variants = [BASELINE, Variant("a", steered), Variant("b", steered, 0.5), Variant("c", booster(seed=3, **prompting))]
    with caplog.at_level(logging.WARNING, "aft_harness"):
        lm = SteeredHFLM(**arguments)
        prompt_format = PromptFormat(apply_chat_template=asked)
        evaluate(lm, variants, [task], prompt_format, source=Tasks([TOYS]), limit=2)
    assert caplog.text.count("the chat template") == (2 if due else 0)
