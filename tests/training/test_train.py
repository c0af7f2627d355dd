"""Training as a whole: against plain training, and what it leaves behind."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from training_cases import (
    examples,
    make_lm,
    pairs,
    plain,
    plain_loglikelihood,
    plain_loss,
    plain_mean_loss,
    plain_training,
    vectors_of,
)

from aft_harness.boosters.booster import Booster
from aft_harness.boosters.provenance import Score
from aft_harness.boosters.variant import Variant
from aft_harness.engine.decoder import decoder_layers
from aft_harness.engine.scoring import Engine
from aft_harness.engine.steering import Steering
from aft_harness.errors import ModelError, TrainingError
from aft_harness.harness.model import SteeredHFLM
from aft_harness.harness.selection import PromptFormat
from aft_harness.progress import TrainingProgress
from aft_harness.training.prepared_objective import PreparedObjective
from aft_harness.training.recipe import Settings
from aft_harness.training.result import TrainingResult
from aft_harness.training.train import train

ARCHITECTURES = ["llama", "phi", "gpt2", "qwen2", "gemma", "falcon", "bloom", "mamba"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_equals_plain_training(architecture: str) -> None:
    lm = make_lm(architecture)
    task = examples(lm, limit=10)
    settings = plain(layers=(1,), lr=1e-2, epochs=2, batch_size=4)
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
def test_every_objective_equals_its_plain_form(name: str, objective: Any, norm: Any) -> None:
    lm = make_lm()
    task = examples(lm, name, limit=9)
    settings = plain(layers=(0, 2), objective=objective, choice_norm=norm, lr=1e-2, epochs=2, batch_size=4, seed=3)
    _, losses, vectors = plain_training(lm.model, task, settings, objective)
    trained = train(lm, [task], settings)
    assert trained.epoch_losses == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(vectors_of(trained), vectors, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("objective", ["choice", "both"])
def test_pairs_are_learned_as_choices_are(objective: Any) -> None:
    lm = make_lm()
    task = pairs(lm)
    settings = plain(layers=(0, 2), objective=objective, lr=1e-2, epochs=2, batch_size=4)
    _, losses, vectors = plain_training(lm.model, task, settings, objective)
    trained = train(lm, [task], settings)
    assert trained.epoch_losses == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(vectors_of(trained), vectors, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["static", "contextual"])
def test_preference_learns_in_both_directions(kind: Any) -> None:
    lm = make_lm()
    task = pairs(lm, 4)
    settings = plain(layers=(1, 2), objective="preference", temperature=2.0, lr=0.05, epochs=2, batch_size=4, kind=kind)
    trained = train(lm, [task], settings)
    assert trained.before.loss == pytest.approx(math.log(2), abs=1e-9)
    first = train(lm, [task], replace(settings, epochs=1))

    def margins(booster: Booster, strength: float) -> list[float]:
        with Steering(lm.model, booster, strength), torch.no_grad():
            return [
                float(plain_loglikelihood(lm.model, chosen) - plain_loglikelihood(lm.model, rejected))
                for chosen, rejected in (example.requests for example in task.train)
            ]

    # One batch an epoch: the loss of the second is that of the booster after the first.
    unchanged, steered, opposed = (margins(first.booster, strength) for strength in (0.0, 1.0, -1.0))
    expected = [
        (math.log1p(math.exp(-(up - middle) / 2)) + math.log1p(math.exp((down - middle) / 2))) / 2
        for up, down, middle in zip(steered, opposed, unchanged, strict=True)
    ]
    assert trained.epoch_losses[0] == pytest.approx(math.log(2))
    assert trained.epoch_losses[1] == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    assert trained.epoch_losses[1] < math.log(2) and all(
        down < middle < up for up, down, middle in zip(steered, opposed, unchanged, strict=True)
    )
    assert trained.booster.provenance.objective == "preference"


def test_tasks_and_pairs_are_mixed() -> None:
    lm = make_lm()
    both = [examples(lm, limit=6), pairs(lm)]
    trained = train(lm, both, plain(layers=(1,), epochs=1, batch_size=12, lr=1e-9, objective="preference"))
    losses = [plain_loss(lm.model, example, "both", "none").item() for example in both[0].train]
    expected = (sum(losses) + 6 * math.log(2)) / 12
    assert trained.epoch_losses[0] == pytest.approx(expected, rel=1e-5)
    provenance = trained.booster.provenance
    assert provenance.objective == "both+preference" and provenance.trained_on == ["toy_choice", "pairs"]
    hashes = {example.document for task in both for example in task.train}
    assert provenance.hashes == hashes


@pytest.mark.parametrize("objective", ["choice", "both"])
def test_the_temperature_divides_what_the_softmax_over_choices_sees(objective: Any) -> None:
    lm = make_lm()
    task = examples(lm, limit=9)
    settings = plain(layers=(1,), objective=objective, temperature=5.0, lr=1e-2, epochs=2, batch_size=4)
    _, losses, vectors = plain_training(lm.model, task, settings, objective)
    trained = train(lm, [task], settings)
    assert trained.epoch_losses == pytest.approx(losses, rel=1e-5)
    torch.testing.assert_close(vectors_of(trained), vectors, rtol=1e-3, atol=1e-5)


def test_without_development_documents_some_training_documents_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aft_harness.training.train.WATCHED", 3)
    lm = make_lm()
    task = examples(lm, limit=9)
    trained = train(lm, [task], plain(layers=(1,), epochs=1))
    assert (trained.measured_on, trained.before.n, trained.after.n) == ("training", 3, 3)
    assert trained.before.loss == pytest.approx(plain_mean_loss(lm, task.train[:3], "both"), rel=1e-5)


@pytest.mark.parametrize(
    ("unit", "schedule"), [("residual", "constant"), ("absolute", "linear"), ("residual", "linear")]
)
def test_rates_follow_the_residual_stream_and_the_schedule(unit: Any, schedule: Any) -> None:
    lm = make_lm()
    task = examples(lm, limit=8)
    settings = plain(layers=(0, 1, 2), lr=1e-2, rate_unit=unit, schedule=schedule, epochs=2, batch_size=4)
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
    architecture: str, tolerance: float, packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = make_lm(architecture, packing=packing)
    task = examples(lm, limit=4)
    settings = plain(layers=(1,), epochs=1, batch_size=4)
    first, _, _ = plain_training(lm.model, task, settings, "both")
    seen: list[Tensor] = []
    step = torch.optim.Adam.step

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.extend(group["params"][0].grad.clone() for group in self.param_groups)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    train(lm, [task], settings)
    torch.testing.assert_close(seen[0], first[1], rtol=tolerance, atol=tolerance * 1e-2)


def test_states_on_disk_change_nothing() -> None:
    lm = make_lm(double=False)
    task = examples(lm, limit=12)
    settings = plain(layers=(2,), epochs=2, batch_size=4)
    in_memory = train(lm, [task], settings)
    on_disk = train(lm, [task], settings, cache_limit=0)
    assert in_memory.booster.sha256 == on_disk.booster.sha256


@pytest.mark.parametrize(("architecture", "resumes"), [("llama", True), ("gpt2", True), ("odd", False)])
def test_a_disposable_model_loses_its_lower_layers_and_trains_the_same(
    architecture: str, resumes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = plain(layers=(1, 2), epochs=2, keep=0.1)
    if not resumes:
        architecture = "llama"
        monkeypatch.setattr(Engine, "resumes", lambda *_: False)
    whole = train(lm := make_lm(architecture), [examples(lm, limit=6)], settings)
    lm = make_lm(architecture)
    spent = train(lm, [examples(lm, limit=6)], settings, disposable=True)
    assert spent.booster.sha256 == whole.booster.sha256
    discarded = [all(each.is_meta for each in layer.parameters()) for layer in lm.engine.layers]
    assert discarded == [resumes, resumes, *([False] * (len(discarded) - 2))]


def test_training_is_deterministic_and_follows_its_seed() -> None:
    lm = make_lm(double=False)
    task = examples(lm, limit=12)
    runs = [train(lm, [task], plain(epochs=1, batch_size=4, seed=seed)).booster for seed in (0, 0, 1)]
    assert runs[0].sha256 == runs[1].sha256 != runs[2].sha256
    assert runs[0].layers == (2,)  # the middle of four


def test_the_model_is_frozen_and_left_as_it_was() -> None:
    lm = make_lm(double=False)
    before = {name: parameter.clone() for name, parameter in lm.model.named_parameters()}
    learning = {name: parameter.requires_grad for name, parameter in lm.model.named_parameters()}
    train(lm, [examples(lm, limit=6)], plain(epochs=1))
    for name, parameter in lm.model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None
        assert parameter.requires_grad == learning[name]
    assert not any(layer._forward_hooks or "forward" in vars(layer) for layer in decoder_layers(lm.model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_train_a_float32_vector(tiny_model: Any, tiny_tokenizer: Any, dtype: torch.dtype) -> None:
    lm = SteeredHFLM(pretrained=tiny_model("llama").to(dtype), tokenizer=tiny_tokenizer)
    trained = train(lm, [examples(lm, limit=12)], plain(epochs=4, lr=5e-2, batch_size=4))
    assert trained.after.loss < trained.before.loss
    assert vectors_of(trained)[0].dtype == torch.float32 and trained.booster.provenance.dtype == str(dtype)[6:]


def test_the_best_epoch_on_development_documents_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm(double=False)

    def run(epochs: int, development: list[float]) -> TrainingResult:
        scripted = iter([Score(loss=9.0, n=4), *(Score(loss=loss, n=4) for loss in development)])
        monkeypatch.setattr(PreparedObjective, "score", lambda self, examples, processes: next(scripted))
        return train(lm, [examples(lm, limit=8, dev_docs=4)], plain(epochs=epochs, batch_size=4))

    best = run(4, [5.0, 2.0, 3.0, 2.5])
    assert (best.kept_epoch, best.before.loss, best.after.loss) == (2, 9.0, 2.0)
    recorded = best.booster.provenance.hyperparameters
    assert best.measured_on == "development" and recorded is not None and recorded["kept_epoch"] == 2
    assert best.booster.sha256 == run(2, [5.0, 2.0]).booster.sha256


def test_losses_before_and_after_are_those_of_the_development_documents() -> None:
    lm = make_lm()
    task = examples(lm, limit=8, dev_docs=4)
    trained = train(lm, [task], plain(epochs=2, batch_size=4))

    assert trained.before.loss == pytest.approx(plain_mean_loss(lm, task.development, "both"), rel=1e-6)
    with Steering(lm.model, trained.booster):
        assert trained.after.loss == pytest.approx(plain_mean_loss(lm, task.development, "both"), rel=1e-6)


def test_mixtures_weigh_their_tasks() -> None:
    lm = make_lm()
    both = [examples(lm, limit=6, weight=3.0), examples(lm, "toy_text", limit=6)]
    trained = train(lm, both, plain(layers=(1,), epochs=1, batch_size=12, lr=1e-9))
    expected = [
        (plain_loss(lm.model, example, objective, "none").item(), weight)
        for task, objective, weight in ((both[0], "both", 3.0), (both[1], "answer", 1.0))
        for example in task.train
    ]
    mean = sum(loss * weight for loss, weight in expected) / sum(weight for _, weight in expected)
    assert trained.epoch_losses[0] == pytest.approx(mean, rel=1e-6)
    assert trained.booster.provenance.objective == "answer+both"


def test_an_objective_on_choices_leaves_other_tasks_of_a_mixture_alone() -> None:
    lm = make_lm()
    tasks = [examples(lm, limit=6), examples(lm, "toy_text", limit=6)]
    trained = train(lm, tasks, plain(layers=(1,), epochs=1, batch_size=12, lr=1e-9, objective="choice"))
    losses = [
        plain_loss(lm.model, example, objective, "none").item()
        for task, objective in zip(tasks, ("choice", "answer"), strict=True)
        for example in task.train
    ]
    assert trained.epoch_losses[0] == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert trained.booster.provenance.objective == "answer+choice"


def test_provenance_records_how_a_booster_was_made() -> None:
    lm = make_lm(double=False)
    task = examples(lm, limit=5, dev_docs=4)
    seen: list[TrainingProgress] = []
    trained = train(lm, [task], plain(epochs=2, batch_size=2), licence="MIT", on_progress=seen.append)
    provenance = trained.booster.provenance
    assert provenance.base_model == lm.base_model
    assert (provenance.method, provenance.objective) == ("aft", "both")
    assert (provenance.licence, provenance.seed) == ("MIT", 0)
    (record,) = provenance.tasks
    assert (record.task, record.n_train, record.n_development, record.overlapping_dropped) == ("toy_choice", 5, 4, 1)
    assert provenance.documents is not None
    assert list(provenance.documents.hashes) == sorted(example.document for example in task.train)
    assert (provenance.before, provenance.after) == (trained.before, trained.after)
    assert trained.after.n == 4
    assert provenance.hyperparameters is not None and provenance.hyperparameters["layers"] == [2]
    assert provenance.hyperparameters["temperatures"] == {"toy_choice": 1.0}
    assert [progress.step for progress in seen if progress.step] == list(range(1, 7)) and seen[-1].steps == 6
    assert {progress.stage.partition(" ")[0] for progress in seen} == {"caching", "training"}
    assert trained.relative_norm[2] > 0 and trained.seconds > 0
    # Everything survives the file.
    assert type(provenance).of(provenance.to_json()) == provenance


def test_training_continues_from_a_booster_and_records_its_documents_too() -> None:
    lm = make_lm()
    task = examples(lm, limit=4)
    other = examples(lm, train_docs="test[0:3]")
    settings = plain(layers=(1,), epochs=1, lr=0.1, rate_unit="absolute", batch_size=100)
    first = train(lm, [other], settings).booster
    start = Booster.static({1: torch.linspace(-1, 1, first.hidden_size)}, first.provenance)
    kept = start.sha256
    given = train(lm, [task], settings, start=start)
    # One step of Adam goes a rate in the direction of the sign of the gradient, from wherever it starts.
    (learned,) = vectors_of(given)
    torch.testing.assert_close((learned - start.injections[1].tensors["vector"]).abs(), torch.full_like(learned, 0.1))
    assert start.sha256 == kept, "the booster that training started from was changed"
    provenance = given.booster.provenance
    assert provenance.start is not None and provenance.start.booster_sha256 == kept
    assert "documents" not in provenance.to_json()["start"]["provenance"]
    assert provenance.hashes == {example.document for example in (*task.train, *other.train)}
    assert [record.split for record in provenance.tasks] == [task.split, other.split]
    assert provenance.training_sha256 != train(lm, [task], settings).booster.provenance.training_sha256
    more = train(lm, [task], replace(settings, layers=(0, 1)), start=start).booster
    assert more.injections[0].tensors["vector"].abs().max() <= 0.1001 < more.injections[1].tensors["vector"].abs().max()


@pytest.mark.parametrize(
    ("start", "changes", "reason"),
    [
        (Booster.static({1: torch.ones(3)}), {}, "has a hidden size of 3; the model has 32"),
        (Booster.static({0: torch.ones(32)}), {}, "has layer 0, which is not trained"),
        (Booster.static({1: torch.ones(32)}), {"kind": "contextual"}, "is static, but the settings train contextual"),
        (
            Booster.static({1: torch.ones(32)}, {"base_model": {"name": "other", "fingerprint": "0" * 64}}),
            {},
            "was made for other",
        ),
    ],
)
def test_a_start_that_does_not_fit_is_refused(start: Booster, changes: Any, reason: str) -> None:
    lm = make_lm()
    with pytest.raises(TrainingError, match=f"the booster to start from {reason}"):
        train(lm, [examples(lm, limit=2)], plain(layers=(1,), epochs=1, **changes), start=start)


def test_a_request_that_cannot_train_is_refused() -> None:
    lm = make_lm(double=False)
    with pytest.raises(TrainingError, match="objective choice: there are no choices in toy_text; use answer"):
        train(lm, [examples(lm, "toy_text", limit=4)], plain(objective="choice"))
    with pytest.raises(ModelError, match="layer 4 is out of range"):
        train(lm, [examples(lm, limit=4)], plain(layers=(4,)))
    lm.model.lm_head.weight.data.fill_(math.nan)
    with pytest.raises(TrainingError, match="the loss became nan in epoch 1; lower the learning rate"):
        train(lm, [examples(lm, limit=4)], plain())


def test_the_default_is_the_default_recipe() -> None:
    lm = make_lm(double=False)
    task = examples(lm, limit=6)
    asked = train(lm, [task]).booster
    assert asked.layers == (1, 2, 3)
    assert asked.sha256 == train(lm, [task], Settings()).booster.sha256


def test_the_prompt_format_that_is_recorded_is_that_of_the_examples() -> None:
    lm = make_lm(double=False)
    shown = PromptFormat(num_fewshot=2, system_instruction="Be brief.")
    provenance = train(lm, [examples(lm, limit=4, prompt_format=shown)], plain(epochs=1)).booster.provenance
    assert provenance.prompting == asdict(shown)
    assert provenance.tasks[0].num_fewshot == 2


def test_a_model_that_has_a_booster_is_not_trained() -> None:
    lm = make_lm(double=False)
    task = examples(lm, limit=4)
    steered = lm.with_variant(Variant("a", Booster.static({1: torch.ones(32)})))
    with pytest.raises(TrainingError, match="the model already has a booster"):
        train(steered, [task], plain(epochs=1))
