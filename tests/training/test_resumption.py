"""An interrupted training goes on from where it stood and ends as one that was never interrupted, bit for bit."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from training_cases import examples, make_lm, pairs, plain

from aft_harness.progress import TrainingProgress
from aft_harness.training import resumption
from aft_harness.training.recipe import Settings
from aft_harness.training.result import TrainingResult
from aft_harness.training.train import train, train_into

TEXTS = ["The child walks to the house and gives the dog an apple. " * 4]

SETTINGS = {
    "static": plain(epochs=4, batch_size=3, schedule="linear", layers="all", rate_unit="residual"),
    "keeping": plain(epochs=4, batch_size=3, keep=1.0),
    "contextual": plain(epochs=4, batch_size=3, kind="contextual", rank=2, lr=0.1),
    "preference": plain(epochs=3, batch_size=2, objective="preference"),
}


def trained(how: Settings, dev_docs: int = 4, **options: Any) -> TrainingResult:
    lm = make_lm(double=False)
    if how.objective == "preference":
        return train(lm, [pairs(lm)], how, **options)
    texts = TEXTS if how.keep else None
    return train(lm, [examples(lm, limit=8, dev_docs=dev_docs)], how, keep_texts=texts, **options)


class Stop:
    """Interrupts once the optimiser has taken some steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, progress: TrainingProgress) -> None:
        if progress.step >= self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("dev_docs", [4, 0])
@pytest.mark.parametrize("name", SETTINGS)
def test_it_ends_as_if_nothing_had_happened(
    name: str, dev_docs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resumption, "SAVED_EVERY", -1.0)
    how, resume = SETTINGS[name], tmp_path / "state"
    whole = trained(how, dev_docs)
    for after in (1, 4, 5, 8):  # within an epoch, and at ends of epochs
        with pytest.raises(KeyboardInterrupt):
            trained(how, dev_docs, resume=resume, on_progress=Stop(after))
    steps: list[int] = []
    last = trained(how, dev_docs, resume=resume, on_progress=lambda progress: steps.append(progress.step))
    assert min(step for step in steps if step) == 9
    assert last.booster.sha256 == whole.booster.sha256 and last.kept_epoch == whole.kept_epoch
    pd.testing.assert_frame_equal(last.losses, whole.losses, check_exact=True)
    assert (last.before, last.after, last.epoch_losses) == (whole.before, whole.after, whole.epoch_losses)
    # Until the caller removes the file, even a finished training is found again.
    again = trained(how, dev_docs, resume=resume, on_progress=Stop(1))
    assert again.booster.sha256 == whole.booster.sha256


def test_the_state_is_written_after_each_epoch_and_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    save = resumption.ResumableProgress.save

    def counted(self: resumption.ResumableProgress) -> None:
        written.append(sum(len(epoch.steps) for epoch in self.epochs))
        save(self)

    monkeypatch.setattr(resumption.ResumableProgress, "save", counted)
    trained(SETTINGS["static"], resume=tmp_path / "state")
    assert written == [3, 6, 9, 12]
    seconds = iter(range(0, 10_000, 11))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(seconds)))
    written.clear()
    trained(SETTINGS["static"], resume=tmp_path / "other")
    assert {3, 6, 9, 12} < set(written)


def test_a_training_into_a_file_leaves_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumption, "SAVED_EVERY", -1.0)
    lm, path, how = make_lm(double=False), tmp_path / "a.safetensors", SETTINGS["static"]
    tasks = [examples(lm, limit=8, dev_docs=4)]
    with pytest.raises(KeyboardInterrupt):
        train_into(path, lm, tasks, how, Stop(4))
    assert [file.name for file in tmp_path.iterdir()] == ["a.resume"]
    booster = train_into(path, lm, tasks, how)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
    assert booster.sha256 == trained(how).booster.sha256
