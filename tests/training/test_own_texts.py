"""Training on own texts as a whole: what it learns, that it can be repeated and resumed, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from training_cases import TOYS, make_lm

from aft_harness.boosters.booster import Booster
from aft_harness.errors import TrainingError
from aft_harness.harness.examples import Judging, TaskExamples, draw
from aft_harness.harness.selection import TaskSelection
from aft_harness.harness.tasks import Tasks
from aft_harness.progress import TrainingProgress
from aft_harness.training.recipe import Objective, Settings
from aft_harness.training.result import TrainingResult
from aft_harness.training.train import train

REWARDS = """
def vowels(document, text): return float(sum(letter in "aeiou" for letter in text) >= 2)
def share(document, text): return sum(letter in "aeiou" for letter in text) / 8
def never(document, text): return 0
"""


@pytest.fixture(autouse=True)
def rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tests_rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)


def settings(objective: Objective, reward: str = "tests_rewards:vowels", **changes: Any) -> Settings:
    how = Settings(
        objective=objective, reward=reward, layers="all", epochs=3, lr=0.3, keep=0.0, samples=6, batch_size=4
    )
    return replace(how, **{"batch_size": 4, **changes})


def examples(lm: Any, how: Settings, limit: int = 10, dev_docs: int = 0, task: str = "toy_text") -> TaskExamples:
    selection = TaskSelection(task, limit=limit, dev_docs=dev_docs)
    (drawn,) = draw([selection], lm, source=Tasks([TOYS]), judging=Judging(how.reward))
    return drawn


def trained(how: Settings, architecture: str = "llama", **options: Any) -> TrainingResult:
    lm = make_lm(architecture, batch_size=4)
    result = train(lm, [examples(lm, how, dev_docs=options.pop("dev_docs", 0))], how, **options)
    assert all(parameter.requires_grad for parameter in lm.model.parameters())
    return result


@pytest.mark.parametrize("objective", ["rejection", "reward"])
def test_the_reward_rises(objective: Objective) -> None:
    seen: list[TrainingProgress] = []
    result = trained(settings(objective, epochs=6), on_progress=seen.append)
    first, last = (result.losses[result.losses["epoch"] == epoch]["reward"].mean() for epoch in (1, 6))
    assert last > first + 0.1
    assert result.before.measure == "negative reward" and result.before.n == 10
    assert {"reward", "right", "tokens_per_second", "kl"} <= set(seen[-1].measures)
    assert result.losses["kl"].dropna().iloc[-1] > 0
    provenance = result.booster.provenance
    assert provenance.objective == objective
    hyperparameters = provenance.to_json()["hyperparameters"]
    assert hyperparameters["samples"] == 6 and hyperparameters["rewards"] == ["tests_rewards:vowels"]


def test_a_model_that_the_engine_does_not_fit_learns_too() -> None:
    assert not math.isnan(trained(settings("reward", epochs=1), "mamba").losses["reward"].iloc[0])


@pytest.mark.parametrize("objective", ["rejection", "reward"])
def test_an_interrupted_run_ends_as_one_that_was_not(objective: Objective, tmp_path: Path) -> None:
    how, resume = settings(objective, keep=1.0 if objective == "reward" else 0.0), tmp_path / "state"
    whole = trained(how, dev_docs=4)
    assert trained(how, dev_docs=4).booster.sha256 == whole.booster.sha256
    stops = iter((2, 4))
    for stop in stops:

        def interrupted(progress: TrainingProgress, stop: int = stop) -> None:
            if progress.stage == "training" and progress.step >= stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            trained(how, dev_docs=4, resume=resume, on_progress=interrupted)
        assert resume.is_file()
    steps: list[int] = []
    last = trained(how, dev_docs=4, resume=resume, on_progress=lambda progress: steps.append(progress.step))
    assert last.booster.sha256 == whole.booster.sha256
    assert last.kept_epoch == whole.kept_epoch
    assert len(last.losses) == len(whole.losses)
    assert min(step for step in steps if step) >= 3


def test_a_state_of_another_training_is_not_used(tmp_path: Path) -> None:
    how, resume = settings("reward", epochs=1), tmp_path / "state"

    def interrupted(progress: TrainingProgress) -> None:
        if progress.step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(how, resume=resume, on_progress=interrupted)
    other = replace(how, seed=1)
    assert trained(other, resume=resume).booster.sha256 == trained(other).booster.sha256
    resume.write_bytes(b"nothing that can be read")
    assert trained(other, resume=resume).booster.sha256 == trained(other).booster.sha256


def test_seeds_draw_other_texts() -> None:
    first, second = (trained(settings("reward", epochs=1, seed=seed)) for seed in (0, 1))
    assert first.booster.sha256 != second.booster.sha256


def test_a_numeric_reward_is_for_policy_gradient_only() -> None:
    result = trained(settings("reward", "tests_rewards:share", epochs=1))
    assert result.losses["right"].isna().all() and result.losses["reward"].notna().all()
    with pytest.raises(TrainingError, match="0 or 1"):
        trained(settings("rejection", "tests_rewards:share"))


def test_nothing_to_learn_from_is_said() -> None:
    with pytest.raises(TrainingError, match="no document had right and wrong texts"):
        trained(settings("rejection", "tests_rewards:never"))
    result = trained(settings("reward", "tests_rewards:never", epochs=1))
    assert (result.losses["learned"] == 0).all()
    assert Booster.of(result.booster.injections).is_zero


def test_settings_that_do_not_fit_are_refused() -> None:
    for changes in ({"samples": 1}, {"kl": -1.0}, {"temperature": 0.5}):
        with pytest.raises(TrainingError, match=next(iter(changes))):
            settings("reward", **changes)
    with pytest.raises(TrainingError, match="needs objective rejection or reward"):
        settings("answer")


def test_other_trainings_do_not_know_of_these_settings() -> None:
    assert not {"samples", "kl", "reward"} & set(Settings().recorded())
    assert {"samples", "kl", "reward"} <= set(settings("reward").recorded())
