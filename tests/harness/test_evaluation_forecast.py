"""What an evaluation will take: the requests are those that it makes, and a model's cost is linear in its layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness_cases import TOYS, booster
from transformers import AutoModelForCausalLM

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.variant import BASELINE, Variant
from aft_harness.errors import BoosterError, ModelError, TaskError
from aft_harness.harness import evaluation_forecast as module
from aft_harness.harness.blueprint import DEEP, SHALLOW, Blueprint, Forecast
from aft_harness.harness.evaluation import evaluate
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.selection import PromptFormat
from aft_harness.harness.tasks import Tasks
from aft_harness.slices import Slice

LAYERS = 6
TASKS = ["toy_choice", "toy_rolling", "toy_text"]
VARIANTS = [BASELINE, Variant("low", booster(0)), Variant("high", booster(4))]


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Any) -> str:
    return str(tiny_checkpoint("llama", num_hidden_layers=LAYERS))


def forecast(model: str, tasks: list[str] = TASKS, variants: Any = VARIANTS, **options: Any) -> Forecast:
    blueprint = Blueprint(model, {"dtype": "float32", "batch_size": 4, "device": "cpu", **options.pop("arguments", {})})
    return module.forecast(blueprint, variants, tasks, source=Tasks([TOYS]), **options)


def test_the_requests_are_those_of_the_evaluation(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[module.Asked] = []
    of = module._Trial.of
    monkeypatch.setattr(module._Trial, "of", lambda lm, each: (asked.append(each), of(lm, each))[1])
    options: dict[str, Any] = {"prompt_format": PromptFormat(num_fewshot=1), "docs": Slice.parse("2:7")}
    found = forecast(model, **options)
    lm = SteeredHFLM(model, device="cpu", batch_size=4)
    (real,) = evaluate(lm, [BASELINE], TASKS, source=Tasks([TOYS]), **options)
    samples = real.results["samples"]
    for requests, task in ((asked[0].choices, TASKS[0]), (asked[0].rolling, TASKS[1]), (asked[0].texts, TASKS[2])):
        expected = [tuple(args) for sample in samples[task] for args in sample["arguments"]]
        assert sorted(map(str, expected)) == sorted(str(request.args) for request in requests)
    assert found.work == "15 loglikelihoods, 5 rolling loglikelihoods, 5 texts to generate"
    assert list(found.seconds) == ["loglikelihoods", "rolling loglikelihoods", "texts"]
    assert all(seconds > 0 for seconds in found.seconds.values())


def test_time_is_linear_in_layers_tokens_and_steps(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"loglikelihoods": (3, 7), "rolling loglikelihoods": (1, 2), "reading": (5, 4), "writing": (2, 9)}

    def of(lm: SteeredHFLM, asked: module.Asked) -> module._Trial:
        layers = len(lm.engine.layers)
        assert layers in (SHALLOW, DEEP)
        return module._Trial(layers, {name: head + layer * layers for name, (head, layer) in rates.items()})

    monkeypatch.setattr(module._Trial, "of", of)
    found = forecast(model)
    lm = SteeredHFLM(model, device="cpu")
    (task, rolling, text) = (Tasks([TOYS]).load([name])["tasks"][name] for name in TASKS)
    prompts = [f"{doc['question']} Answer:" for doc in text.eval_docs]
    choices = {
        tuple(tokens[: count + 1])
        for doc in task.eval_docs
        for choice in doc["choices"]
        for tokens in [lm.encode(f"{doc['question']} Answer:", f" {choice}").inputs]
        for count in range(len(tokens))
    }
    # Rows of 256 columns repeat what their sequences share with those of other rows.
    assert len(choices) <= (tokens := found.seconds["loglikelihoods"] / (3 * 3 + 7 * (6 + 5 + 1))) < 1.2 * len(choices)
    assert tokens == int(tokens)
    whole = sum(len(lm.tok_encode(doc["question"])) for doc in rolling.eval_docs)
    assert found.seconds["rolling loglikelihoods"] == 3 * whole * (1 + 2 * 6)  # each variant runs all layers
    read = sum(len(lm.tok_encode(prompt)) for prompt in prompts)
    steps = 3 * 8  # 12 documents in batches of 4, of at most 8 tokens
    assert found.seconds["texts"] == 3 * (read * (5 + 4 * 6) + steps * (2 + 9 * 6))


def test_memory_holds_weights_and_the_cache_of_texts(model: str) -> None:
    found = forecast(model, ["toy_text"], [BASELINE])
    whole = AutoModelForCausalLM.from_pretrained(model)
    assert found.memory["weights"] == sum(tensor.nbytes for tensor in (*whole.parameters(), *whole.buffers()))
    lm = SteeredHFLM(model, device="cpu")
    task = Tasks([TOYS]).load(["toy_text"])["tasks"]["toy_text"]
    longest = max(len(lm.tok_encode(f"{doc['question']} Answer:")) for doc in task.eval_docs) + 8
    cache = whole(torch.ones(4, longest, dtype=torch.long), use_cache=True).past_key_values
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert found.memory["keys and values"] == kept
    assert found.memory["program"] > 2**27
    assert "keys and values" not in forecast(model, ["toy_choice"]).memory


def test_what_cannot_be_estimated_is_one_line(model: str) -> None:
    with pytest.raises(ModelError, match="batch size auto takes cannot be estimated"):
        forecast(model, arguments={"batch_size": "auto"})
    with pytest.raises(BoosterError, match="hidden size"):
        forecast(model, variants=[BASELINE, Variant("wide", Booster.static({1: torch.ones(64)}))])
    with pytest.raises(BoosterError, match="layer"):
        forecast(model, variants=[BASELINE, Variant("deep", booster(LAYERS))])
    with pytest.raises(TaskError, match="toy_nothing"):
        forecast(model, ["toy_nothing"])
