"""Plain text: HellaSwag's passages as the stock task reads them, and bits that a plain loop counts too."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from aft_harness.errors import TaskError
from aft_harness.harness.examples import draw
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.selection import TaskSelection
from aft_harness.harness.suites import folder
from aft_harness.harness.tasks import Tasks

OWN_TEXT = """
include: {suite}/plain_text/plain_text.yaml
task: my_text
dataset_path: text
dataset_kwargs: {{data_files: {{validation: {folder}/text.txt}}, sample_by: paragraph, cache_dir: {folder}}}
process_docs: null
"""


@pytest.fixture(params=[HFLM, SteeredHFLM])
def lm(request: pytest.FixtureRequest, tiny_model: Any, tiny_tokenizer: Any) -> HFLM:
    """The stock model type and ours: both must give the numbers of a plain loop."""
    model = tiny_model("llama", max_position_embeddings=2048)
    loaded: HFLM = request.param(pretrained=model, tokenizer=tiny_tokenizer, device="cpu", batch_size=2)
    return loaded


def plain_bits(lm: HFLM, text: str) -> float:
    """Bits for each byte of a text, its first token predicted from the token that begins every text."""
    tokens = torch.tensor([[lm.prefix_token_id, *lm.tok_encode(text)]])
    with torch.no_grad():
        logprobs = lm.model(tokens).logits[0, :-1].log_softmax(-1)
    total = sum(logprobs[place, token].item() for place, token in enumerate(tokens[0, 1:]))
    return -total / math.log(2) / len(text.encode("utf-8"))


def test_passages_are_those_of_the_stock_task(real_data: Path) -> None:
    tasks = Tasks([folder()]).leaves(["plain_text", "hellaswag"])
    plain, stock = tasks["plain_text"], tasks["hellaswag"]
    rows = [doc for index, doc in enumerate(stock.eval_docs) if 4000 <= index < 4100]
    assert len(rows) == 100
    expected = [stock.doc_to_text(row) + " " + row["choices"][row["gold"]] for row in rows]
    assert [doc["text"] for doc in plain.eval_docs] == expected
    assert all(set(doc) == {"text"} for doc in plain.eval_docs)


def test_bits_per_byte_are_those_of_a_plain_loop(lm: HFLM, real_data: Path) -> None:
    manager = Tasks([folder()]).manager
    # Few-shot examples and a system instruction are for prompts: plain text stays plain.
    results = simple_evaluate(
        model=lm,
        tasks=["plain_text"],
        task_manager=manager,
        limit=3,
        num_fewshot=2,
        system_instruction="Be brief.",
        bootstrap_iters=0,
    )
    samples = results["samples"]["plain_text"]
    for sample in samples:
        assert sample["bits_per_byte"] == pytest.approx(plain_bits(lm, sample["doc"]["text"]), rel=1e-5)
    mean = sum(sample["bits_per_byte"] for sample in samples) / 3
    assert results["results"]["plain_text"]["bits_per_byte,none"] == pytest.approx(mean)


def test_own_text_is_scored_by_paragraph(lm: HFLM, tmp_path: Path) -> None:
    # Characters of several bytes: bits are counted by byte, and not by character.
    paragraphs = ["Größere Äpfel kosten 3 €.", "The door opens.\nA child looks out: 你好!"]
    (tmp_path / "text.txt").write_text("\n\n".join(paragraphs) + "\n\n\n\n", encoding="utf-8")
    (tmp_path / "my_text.yaml").write_text(OWN_TEXT.format(suite=folder(), folder=tmp_path))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = simple_evaluate(model=lm, tasks=["my_text"], task_manager=manager, bootstrap_iters=0)
    samples = sorted(results["samples"]["my_text"], key=lambda sample: int(sample["doc_id"]))
    assert [sample["doc"]["text"].strip() for sample in samples] == paragraphs
    for sample in samples:
        assert sample["bits_per_byte"] == pytest.approx(plain_bits(lm, sample["doc"]["text"]), rel=1e-5)


@pytest.mark.parametrize("train_docs", [None, "validation[0:50]"])
def test_plain_text_is_not_trained_on(
    train_docs: str | None, tiny_model: Any, tiny_tokenizer: Any, real_data: Path
) -> None:
    lm = SteeredHFLM(pretrained=tiny_model("llama"), tokenizer=tiny_tokenizer)
    with pytest.raises(TaskError, match="no answer to train on"):
        draw([TaskSelection("plain_text", train_docs=train_docs)], lm, source=Tasks([folder()]))
