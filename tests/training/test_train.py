from __future__ import annotations

import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from aft_harness.training.lesson import Lesson, Score
from torch import Tensor, nn

from aft_harness.boosters.booster import Booster
from aft_harness.engine import scoring
from aft_harness.engine.steering import Steering, decoder_layers
from aft_harness.errors import ModelError, TrainingError
from aft_harness.harness.examples import Example, Prompting, TaskExamples, TaskSelection, load_tasks, task_examples
from aft_harness.harness.model import SteeredHFLM
from aft_harness.training.recipe import Settings
from aft_harness.training.train import Progress, Trained, train

TOYS = str(Path(__file__).parents[1] / "toy_tasks")
ARCHITECTURES = ["llama", "phi", "gpt2", "qwen2", "gemma", "falcon", "bloom", "mamba"]


@pytest.fixture
def make_lm(tiny_model: Any, tiny_tokenizer: Any) -> Any:
    def make(architecture: str = "llama", double: bool = True, **kwargs: Any) -> SteeredHFLM:
        model = tiny_model(architecture)
        return SteeredHFLM(pretrained=model.double() if double else model, tokenizer=tiny_tokenizer, **kwargs)

    return make


def examples(lm: SteeredHFLM, name: str = "toy_choice", **selection: Any) -> TaskExamples:
    ((chosen, task),) = load_tasks([TaskSelection(name, **selection)], [TOYS])
    return task_examples(chosen, task, Prompting(), lm)


def plain_loglikelihood(model: nn.Module, request: scoring.Request) -> Tensor:
    """The oracle: one row, every layer, the whole head, no hook of ours."""
    tokens = torch.tensor([[*request.context, *request.continuation]])
    logprobs = model(tokens[:, :-1]).logits.log_softmax(-1)[0]
    places = range(len(request.context) - 1, tokens.shape[1] - 1)
    return torch.stack([logprobs[place, tokens[0, place + 1]] for place in places]).sum()


def plain_loss(model: nn.Module, example: Example, objective: str, norm: str, temperature: float = 1.0) -> Tensor:
    if objective == "answer":
        gold = example.requests[example.gold[0]]
        return -plain_loglikelihood(model, gold) / len(gold.continuation)
    if objective == "both":
        choice = plain_loss(model, example, "choice", norm, temperature)
        return plain_loss(model, example, "answer", norm) + choice
    scores = torch.stack([plain_loglikelihood(model, request) for request in example.requests])
    if norm == "characters":
        scores = scores / torch.tensor([len(choice) for choice in example.choices])
    return -(scores / temperature).log_softmax(0)[list(example.gold)].logsumexp(0)


def plain_scale(model: Any, task: TaskExamples, layer: int) -> float:
    """Median root mean square of a layer's output over the distinct tokens of the examples."""
    sizes = {}
    for request in (request for example in task.train for request in example.requests):
        hidden = model(torch.tensor([request.inputs]), output_hidden_states=True).hidden_states[layer + 1][0]
        for place in range(len(request.inputs)):
            sizes[example_key(task, request), request.inputs[: place + 1]] = float(hidden[place].square().mean().sqrt())
    return sorted(sizes.values())[(len(sizes) - 1) // 2]


def example_key(task: TaskExamples, request: scoring.Request) -> int:
    return next(place for place, example in enumerate(task.train) if request in example.requests)


def plain_training(model: Any, task: TaskExamples, settings: Settings, objective: str) -> tuple[dict, list, list]:
    """Adam on vectors added to layer outputs, one example at a time: gradients of the first step, losses, vectors."""
    assert settings.layers is not None
    vectors = {int(layer): torch.zeros(32, dtype=model.dtype, requires_grad=True) for layer in settings.layers}

    def hook(layer: int) -> Any:
        def add(module: nn.Module, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (output[0] + vectors[layer].to(output[0].dtype), *output[1:])
            return output + vectors[layer].to(output.dtype)

        return add

    handles = [decoder_layers(model)[layer].register_forward_hook(hook(layer)) for layer in vectors]
    scales = {layer: plain_scale(model, task, layer) if settings.rate_unit == "residual" else 1.0 for layer in vectors}
    shared = len(vectors) if settings.rate_unit == "residual" else 1
    rates = [settings.lr * scales[layer] / shared for layer in vectors]
    optimiser = torch.optim.Adam([{"params": [vector]} for vector in vectors.values()])
    steps = settings.epochs * math.ceil(len(task.train) / settings.batch_size)
    done = 0
    first: dict[int, Tensor] = {}
    losses = []
    for epoch in range(1, settings.epochs + 1):
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
        order = torch.randperm(len(task.train), generator=generator).tolist()
        total = 0.0
        for start in range(0, len(order), settings.batch_size):
            batch = [task.train[index] for index in order[start : start + settings.batch_size]]
            optimiser.zero_grad()
            for example in batch:
                loss = plain_loss(model, example, objective, settings.choice_norm, settings.temperature)
                (loss / len(batch)).backward()
                total += loss.item()
            first = first or {layer: vector.grad.clone() for layer, vector in vectors.items()}  # type: ignore[union-attr]
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - done / steps if settings.schedule == "linear" else 1)
            optimiser.step()
            done += 1
        losses.append(total / len(order))
    for handle in handles:
        handle.remove()
    return first, losses, [vectors[layer].detach().float() for layer in sorted(vectors)]


def vectors_of(trained: Trained) -> list[Tensor]:
    return list(trained.booster.tensors.values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_equals_plain_training(make_lm: Any, architecture: str) -> None:
    lm = make_lm(architecture)
    task = examples(lm, limit=10)
    settings = Settings(layers=(1,), lr=1e-2, epochs=2, batch_size=4)
    _, losses, vectors = plain_training(lm.model, task, settings, "both")
    trained = train(lm, [task], settings)
    assert trained.epoch_losses == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(vectors_of(trained), vectors, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "objective", "norm"),
    [
        ("toy_choice", "answer", "none"),
        ("toy_choice", "choice", "characters"),
        ("toy_choice", "both", "none"),
        ("toy_text", "answer", "none"),
        ("toy_two_right", "choice", "none"),
        ("toy_blanks", "choice", "none"),
    ],
)
def test_every_objective_equals_its_plain_form(make_lm: Any, name: str, objective: Any, norm: Any) -> None:
    lm = make_lm()
    task = examples(lm, name, limit=9)
    settings = Settings(layers=(0, 2), objective=objective, choice_norm=norm, lr=1e-2, epochs=2, batch_size=4, seed=3)
    _, losses, vectors = plain_training(lm.model, task, settings, objective)
    trained = train(lm, [task], settings)
    assert trained.epoch_losses == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(vectors_of(trained), vectors, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("objective", ["choice", "both"])
def test_the_temperature_divides_what_the_softmax_over_choices_sees(make_lm: Any, objective: Any) -> None:
    lm = make_lm()
    task = examples(lm, limit=9)
    settings = Settings(layers=(1,), objective=objective, temperature=5.0, lr=1e-2, epochs=2, batch_size=4)
    _, losses, vectors = plain_training(lm.model, task, settings, objective)
    trained = train(lm, [task], settings)
    assert trained.epoch_losses == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(vectors_of(trained), vectors, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("norm", ["none", "characters"])
def test_the_temperature_is_the_typical_margin_of_the_unchanged_model(
    make_lm: Any, norm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aft_harness.training.lesson.MEASURED", 7)
    lm = make_lm()
    task = examples(lm, limit=9)
    margins = []
    for example in task.train[:7]:
        scores = [plain_loglikelihood(lm.model, request).item() for request in example.requests]
        if norm == "characters":
            scores = [score / len(choice) for score, choice in zip(scores, example.choices, strict=True)]
        right = scores.pop(example.gold[0])
        margins.append(abs(right - max(scores)))
    expected = statistics.median(margins)
    settings = Settings(layers=(1,), choice_norm=norm, temperature=None, lr=1e-2, epochs=2, batch_size=4)
    trained = train(lm, [task], settings)
    assert trained.booster.provenance["hyperparameters"]["temperatures"] == pytest.approx({task.task: expected})
    _, losses, vectors = plain_training(lm.model, task, replace(settings, temperature=expected), "both")
    assert trained.epoch_losses == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(vectors_of(trained), vectors, rtol=1e-3, atol=1e-5)


def test_without_development_documents_some_training_documents_are_scored(
    make_lm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aft_harness.training.train.WATCHED", 3)
    lm = make_lm()
    task = examples(lm, limit=9)
    trained = train(lm, [task], Settings(layers=(1,), epochs=1))
    assert (trained.measured_on, trained.before.n, trained.after.n) == ("training", 3, 3)
    first = [plain_loss(lm.model, example, "both", "none").item() for example in task.train[:3]]
    assert trained.before.loss == pytest.approx(sum(first) / 3, rel=1e-5)


@pytest.mark.parametrize(
    ("unit", "schedule"), [("residual", "constant"), ("absolute", "linear"), ("residual", "linear")]
)
def test_rates_follow_the_residual_stream_and_the_schedule(make_lm: Any, unit: Any, schedule: Any) -> None:
    lm = make_lm()
    task = examples(lm, limit=8)
    settings = Settings(layers=(0, 1, 2), lr=1e-2, rate_unit=unit, schedule=schedule, epochs=2, batch_size=4)
    _, losses, vectors = plain_training(lm.model, task, settings, "both")
    trained = train(lm, [task], settings)
    assert trained.epoch_losses == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(vectors_of(trained), vectors, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("packing", ["on", "off"])
@pytest.mark.parametrize(
    ("architecture", "tolerance"),
    # transformers computes RMSNorm in float32 whatever the model's dtype is.
    [("gpt2", 1e-8), ("falcon", 1e-8), ("llama", 1e-5), ("gemma3_text", 1e-5)],
)
def test_the_first_gradient_is_the_plain_one(
    make_lm: Any, architecture: str, tolerance: float, packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = make_lm(architecture, packing=packing)
    task = examples(lm, limit=4)
    settings = Settings(layers=(1,), epochs=1, batch_size=4)
    first, _, _ = plain_training(lm.model, task, settings, "both")
    seen: list[Tensor] = []
    step = torch.optim.Adam.step

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.extend(group["params"][0].grad.clone() for group in self.param_groups)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    train(lm, [task], settings)
    torch.testing.assert_close(seen[0], first[1], rtol=tolerance, atol=tolerance * 1e-2)


def test_states_on_disk_change_nothing(make_lm: Any) -> None:
    lm = make_lm(double=False)
    task = examples(lm, limit=12)
    settings = Settings(layers=(2,), epochs=2, batch_size=4)
    in_memory = train(lm, [task], settings)
    on_disk = train(lm, [task], settings, cache_limit=0)
    assert in_memory.booster.sha256 == on_disk.booster.sha256


def test_training_is_deterministic_and_follows_its_seed(make_lm: Any) -> None:
    lm = make_lm(double=False)
    task = examples(lm, limit=12)
    runs = [train(lm, [task], Settings(epochs=1, batch_size=4, seed=seed)).booster for seed in (0, 0, 1)]
    assert runs[0].sha256 == runs[1].sha256 != runs[2].sha256
    assert runs[0].layers == (2,)  # the middle of four


def test_the_model_is_frozen_and_left_as_it_was(make_lm: Any) -> None:
    lm = make_lm(double=False)
    before = {name: parameter.clone() for name, parameter in lm.model.named_parameters()}
    learning = {name: parameter.requires_grad for name, parameter in lm.model.named_parameters()}
    train(lm, [examples(lm, limit=6)], Settings(epochs=1))
    for name, parameter in lm.model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None
        assert parameter.requires_grad == learning[name]
    assert not any(layer._forward_hooks or "forward" in vars(layer) for layer in decoder_layers(lm.model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_train_a_float32_vector(tiny_model: Any, tiny_tokenizer: Any, dtype: torch.dtype) -> None:
    lm = SteeredHFLM(pretrained=tiny_model("llama").to(dtype), tokenizer=tiny_tokenizer)
    trained = train(lm, [examples(lm, limit=12)], Settings(epochs=4, lr=5e-2, batch_size=4))
    assert trained.after.loss < trained.before.loss
    assert vectors_of(trained)[0].dtype == torch.float32 and trained.booster.provenance["dtype"] == str(dtype)[6:]


def test_the_best_epoch_on_development_documents_is_kept(make_lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm(double=False)

    def run(epochs: int, development: list[float]) -> Trained:
        scripted = iter([Score(9.0, None, 4), *(Score(loss, None, 4) for loss in development)])
        monkeypatch.setattr(Lesson, "score", lambda self, examples: next(scripted))
        return train(lm, [examples(lm, limit=8, dev_docs=4)], Settings(epochs=epochs, batch_size=4))

    best = run(4, [5.0, 2.0, 3.0, 2.5])
    assert (best.kept_epoch, best.before.loss, best.after.loss) == (2, 9.0, 2.0)
    assert best.measured_on == "development" and best.booster.provenance["hyperparameters"]["kept_epoch"] == 2
    assert best.booster.sha256 == run(2, [5.0, 2.0]).booster.sha256


def test_losses_before_and_after_are_those_of_the_development_documents(make_lm: Any) -> None:
    lm = make_lm()
    task = examples(lm, limit=8, dev_docs=4)
    trained = train(lm, [task], Settings(epochs=2, batch_size=4))

    def mean_loss() -> float:
        losses = [plain_loss(lm.model, example, "both", "none").item() for example in task.development]
        return sum(losses) / len(losses)

    assert trained.before.loss == pytest.approx(mean_loss(), rel=1e-6)
    with Steering(lm.model, trained.booster):
        assert trained.after.loss == pytest.approx(mean_loss(), rel=1e-6)


def test_mixtures_weigh_their_tasks(make_lm: Any) -> None:
    lm = make_lm()
    both = [examples(lm, limit=6, weight=3.0), examples(lm, "toy_text", limit=6)]
    trained = train(lm, both, Settings(layers=(1,), epochs=1, batch_size=12, lr=1e-9))
    expected = [
        (plain_loss(lm.model, example, objective, "none").item(), weight)
        for task, objective, weight in ((both[0], "both", 3.0), (both[1], "answer", 1.0))
        for example in task.train
    ]
    mean = sum(loss * weight for loss, weight in expected) / sum(weight for _, weight in expected)
    assert trained.epoch_losses[0] == pytest.approx(mean, rel=1e-6)
    assert trained.booster.provenance["objective"] == "answer+both"


def test_an_objective_on_choices_leaves_other_tasks_of_a_mixture_alone(make_lm: Any) -> None:
    lm = make_lm()
    tasks = [examples(lm, limit=6), examples(lm, "toy_text", limit=6)]
    trained = train(lm, tasks, Settings(layers=(1,), epochs=1, batch_size=12, lr=1e-9, objective="choice"))
    losses = [
        plain_loss(lm.model, example, objective, "none").item()
        for task, objective in zip(tasks, ("choice", "answer"), strict=True)
        for example in task.train
    ]
    assert trained.epoch_losses[0] == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert trained.booster.provenance["objective"] == "answer+choice"


def test_provenance_tells_the_whole_story(make_lm: Any) -> None:
    lm = make_lm(double=False)
    task = examples(lm, limit=5, dev_docs=4)
    seen: list[Progress] = []
    trained = train(lm, [task], Settings(epochs=2, batch_size=2), licence="MIT", on_progress=seen.append)
    told = trained.booster.provenance
    assert told["base_model"] == lm.base_model.to_json()
    assert (told["method"], told["objective"], told["licence"], told["seed"]) == ("aft", "both", "MIT", 0)
    assert told["tasks"][0]["n_train"] == 5 and told["tasks"][0]["overlapping_dropped"] == 1
    assert told["documents"]["hashes"] == sorted(example.document for example in task.train)
    assert told["before"]["loss"] == trained.before.loss and told["after"]["n"] == 4
    assert [progress.step for progress in seen if progress.step] == list(range(1, 7)) and seen[-1].steps == 6
    assert trained.relative_norm[2] > 0 and trained.seconds > 0


def test_training_goes_on_from_a_booster_and_remembers_what_that_learned(make_lm: Any) -> None:
    lm = make_lm()
    task = examples(lm, limit=4)
    other = examples(lm, train_docs="test[0:3]")
    settings = Settings(layers=(1,), epochs=1, lr=0.1, rate_unit="absolute", batch_size=100)
    first = train(lm, [other], settings).booster
    start = Booster.static({1: torch.linspace(-1, 1, first.hidden_size)}, first.provenance)
    kept = start.sha256
    given = train(lm, [task], settings, start=start)
    # One step of Adam goes a rate in the direction of the sign of the gradient, from wherever it starts.
    (gone,) = vectors_of(given)
    torch.testing.assert_close((gone - start.injections[1].tensors["vector"]).abs(), torch.full_like(gone, 0.1))
    assert start.sha256 == kept, "the booster that training started from was changed"
    told = given.booster.provenance
    assert told["start"]["booster_sha256"] == kept and "documents" not in told["start"]["provenance"]
    assert set(told["documents"]["hashes"]) == {one.document for one in (*task.train, *other.train)}
    assert [one["split"] for one in told["tasks"]] == [task.split, other.split]
    assert told["training_sha256"] != train(lm, [task], settings).booster.provenance["training_sha256"]
    more = train(lm, [task], replace(settings, layers=(0, 1)), start=start).booster
    assert more.injections[0].tensors["vector"].abs().max() <= 0.1001 < more.injections[1].tensors["vector"].abs().max()


@pytest.mark.parametrize(
    ("start", "changes", "reason"),
    [
        (Booster.static({1: torch.ones(3)}), {}, "--start has vectors of 3 numbers"),
        (Booster.static({0: torch.ones(32)}), {}, "--start has layer 0, which is not trained"),
        (Booster.static({1: torch.ones(32)}), {"kind": "contextual"}, "--start is static, --kind is contextual"),
        (
            Booster.static({1: torch.ones(32)}, {"base_model": {"name": "other", "fingerprint": "0" * 64}}),
            {},
            "--start was made for other",
        ),
    ],
)
def test_a_start_that_does_not_fit_is_refused(make_lm: Any, start: Booster, changes: Any, reason: str) -> None:
    lm = make_lm()
    with pytest.raises(TrainingError, match=reason):
        train(lm, [examples(lm, limit=2)], Settings(layers=(1,), epochs=1, **changes), start=start)


def test_a_request_that_cannot_train_is_refused(make_lm: Any) -> None:
    lm = make_lm(double=False)
    with pytest.raises(TrainingError, match="no choices in toy_text"):
        train(lm, [examples(lm, "toy_text", limit=4)], Settings(objective="choice"))
    with pytest.raises(ModelError, match="layer 4 is out of range"):
        train(lm, [examples(lm, limit=4)], Settings(layers=(4,)))
    for wrong in ({"epochs": 0}, {"batch_size": 0}, {"lr": 0.0}, {"lr": math.nan}):
        with pytest.raises(TrainingError):
            Settings(**wrong)
    lm.model.lm_head.weight.data.fill_(math.nan)
    with pytest.raises(TrainingError, match="the loss became nan in epoch 1; lower --lr"):
        train(lm, [examples(lm, limit=4)], Settings())
