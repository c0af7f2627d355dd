"""The letter-format tasks and the repetition of the first published experiment."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.documents import text_hash
from aft_harness.boosters.variant import BASELINE, Variant
from aft_harness.errors import TaskError
from aft_harness.harness.evaluation import evaluate
from aft_harness.harness.examples import Example, TaskExamples, draw
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.selection import TaskSelection
from aft_harness.harness.suites import folder
from aft_harness.harness.tasks import Tasks
from aft_harness.training import extraction
from aft_harness.training.development import outcomes
from aft_harness.training.objective import ranking_objectives
from aft_harness.training.recipe import RECIPES
from aft_harness.training.train import train

SCRIPT = Path(__file__).parents[2] / "scripts" / "studies" / "reproduce.py"


@pytest.fixture(scope="module")
def reproduce() -> Any:
    spec = importlib.util.spec_from_file_location("reproduce", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["reproduce"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def lm(tiny_model: Any, smollm2: Path) -> SteeredHFLM:
    """A tiny model with a real tokenizer, which has a token for each letter."""
    model = tiny_model("llama", max_position_embeddings=2048, vocab_size=49152)
    return SteeredHFLM(pretrained=model.double(), tokenizer=str(smollm2), batch_size=4)


def drawn(lm: SteeredHFLM, name: str, **selection: Any) -> TaskExamples:
    (examples,) = draw([TaskSelection(name, **selection)], lm, source=Tasks([folder()]))
    return examples


def task_of(name: str) -> Any:
    return Tasks([folder()]).leaves([name])[name]


def test_the_published_rows_and_prompt(lm: SteeredHFLM, real_data: Path) -> None:
    rows = datasets.load_dataset("Rowan/hellaswag", split="validation")
    task = task_of("aft_hellaswag_letter")
    for split, start in (("train", 0), ("test", 200)):
        assert [doc["ind"] for doc in task.dataset[split]] == rows.select(range(start, start + 200))["ind"]
    row, doc = rows[203], task.dataset["test"][3]
    endings = row["endings"]
    expected = (
        f"Complete the sentence:\n{row['ctx']}\n\nA. {endings[0]}\nB. {endings[1]}\nC. {endings[2]}\nD. {endings[3]}"
        "\n\nThe best answer is:"
    )
    assert task.doc_to_text(doc) == expected
    assert (task.doc_to_choice(doc), task.doc_to_target(doc)) == (list("ABCD"), int(row["label"]))
    example = drawn(lm, "aft_hellaswag_letter", limit=1).train[0]
    assert [lm.tok_decode(list(one.continuation)) for one in example.requests] == [" A", " B", " C", " D"]


def test_arc_questions_have_a_letter_for_each_of_their_options(real_data: Path) -> None:
    task = task_of("aft_arc_easy_letter")
    rows = datasets.load_dataset("allenai/ai2_arc", "ARC-Easy", split="test")
    sizes = set()
    for doc, row in zip(task.dataset["test"], rows, strict=True):
        sizes.add(len(row["choices"]["text"]))
        assert doc["letters"] == list("ABCDE")[: len(row["choices"]["text"])]
        assert row["choices"]["label"][doc["gold"]] == row["answerKey"]
        assert f"\n{doc['letters'][doc['gold']]}. {doc['options'][doc['gold']]}\n" in task.doc_to_text(doc)
    assert 4 in sizes


def test_a_tokenizer_without_letters_cannot_run_the_task(tiny_model: Any, tiny_tokenizer: Any, real_data: Path) -> None:
    # It cuts " D" into a space and a D.
    model = tiny_model("llama", max_position_embeddings=2048)
    lm = SteeredHFLM(pretrained=model, tokenizer=tiny_tokenizer, batch_size=4)
    with pytest.raises(TaskError, match="aft_hellaswag_letter: this tokenizer encodes several"):
        drawn(lm, "aft_hellaswag_letter", limit=2)
    with pytest.raises(TaskError, match="aft_hellaswag_letter: this tokenizer encodes several"):
        evaluate(lm, [BASELINE], ["aft_hellaswag_letter"], source=Tasks([folder()]), limit=2)


def made(lm: SteeredHFLM, count: int) -> TaskExamples:
    """Lettered questions without a dataset."""
    examples = []
    for number in range(count):
        prompt = (
            f"Complete the sentence:\nThe child number {number} puts on\n\nA. a coat\nB. light\n\nThe best answer is:"
        )
        requests = tuple(lm.encode(prompt, f" {letter}") for letter in "AB")
        examples.append(Example("letters", text_hash(prompt), prompt, requests, (number % 2,), ("A", "B")))
    return TaskExamples("letters", "1.0", "choice", f"train[0:{count}]", 0, examples, [])


def test_aft_is_the_published_procedure(lm: SteeredHFLM) -> None:
    """Line by line: one question at a time, the loss of the letter after the prompt, gradients over 4 questions."""
    task, model = made(lm, 10), lm.model
    vector = torch.zeros(32, dtype=torch.float64, requires_grad=True)
    handle = model.model.layers[2].register_forward_hook(lambda module, args, output: output + vector)
    optimiser = torch.optim.Adam([vector], lr=1e-2)
    losses, first = [], None
    for epoch in range(1, 6):
        order = torch.randperm(10, generator=torch.Generator().manual_seed(epoch)).tolist()
        total = 0.0
        for start in range(0, 10, 4):
            group = order[start : start + 4]
            for index in group:
                example = task.train[index]
                request = example.requests[example.gold[0]]
                logits = model(torch.tensor([request.context])).logits[0, -1]
                loss = torch.nn.functional.cross_entropy(logits[None], torch.tensor(request.continuation))
                (loss / len(group)).backward()
                total += loss.item()
            first = vector.grad.clone() if first is None and vector.grad is not None else first
            optimiser.step()
            optimiser.zero_grad()
        losses.append(total / 10)
    handle.remove()
    seen: list[torch.Tensor] = []
    step = torch.optim.Adam.step

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(self.param_groups[0]["params"][0].grad.clone())
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", spy)
        trained = train(lm, [task], replace(RECIPES["original"], layers=2))
    assert first is not None
    torch.testing.assert_close(seen[0], first, rtol=1e-3, atol=1e-9)
    assert trained.epoch_losses == pytest.approx(losses, rel=1e-3)
    torch.testing.assert_close(
        trained.booster.tensors["layers.2.vector"], vector.detach().float(), rtol=1e-3, atol=1e-5
    )


def test_strengths_are_picked_where_each_reading_says(reproduce: Any, lm: SteeredHFLM) -> None:
    letters = made(lm, 36)
    examples, objectives = letters.train, ranking_objectives([letters])
    early, test, development = examples[:12], examples[12:24], examples[24:]
    boosters = {
        name: Booster.static({layer: 3 * torch.randn(32, generator=torch.Generator().manual_seed(layer))})
        for layer, name in enumerate(("mean difference", "function vector", "AFT"))
    }

    def right(name: str, rows: list[Example], strength: float) -> float:
        (found,) = outcomes(lm, rows, objectives, [Variant(name, boosters[name], strength)])
        return sum(bool(outcome.right) for outcome in found) / len(rows)

    rows = {row.method: row for row in reproduce.read_twice(lm, boosters, early, test, development, lambda stage: None)}
    for name, strengths, reported in (
        ("mean difference", extraction.MEAN_DIFFERENCE_STRENGTHS, test),
        ("function vector", extraction.FUNCTION_VECTOR_STRENGTHS, early),
    ):
        assert rows[name].published.steered == max(right(name, reported, strength) for strength in strengths)
        best = max(strengths, key=lambda strength: right(name, development, strength))
        assert rows[name].honest.steered == right(name, test, best) and rows[name].honest.n == 12
        assert rows[name].honest_note == f"strength {best:g} picked on 12 others"
    assert "rows 0-199" in rows["function vector"].published_note
    assert rows["AFT"].honest.steered == rows["AFT"].published.steered == right("AFT", test, 1.0)


def test_the_three_kinds_of_rows_share_no_question(reproduce: Any, lm: SteeredHFLM, real_data: Path) -> None:
    learning, test, development = reproduce.rows_of(lm)
    documents = [{example.document for example in part} for part in (learning.train, test, development)]
    assert len(test) == 200 and len(development) == 100 and 195 <= len(learning.train) <= 200
    assert not (documents[0] & documents[1] or documents[1] & documents[2] or documents[0] & documents[2])


def test_the_table_names_every_reading(reproduce: Any) -> None:
    from aft_harness.results.statistics import compare

    paired = compare([0, 1, 0, 1], [1, 1, 0, 1])
    rows = [reproduce.Row(method, paired, "biased", paired, "picked") for method in list(reproduce.PUBLISHED)[1:]]
    said = reproduce.table(rows)
    for word in ("published, Phi-2", "as published (biased)", "honest", "AFT", "45.0% (+1.5)", "n = 4", "p = 1"):
        assert word in said
