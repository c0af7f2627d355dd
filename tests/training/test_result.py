"""What a training gives back: its table of losses, and the curves that it draws."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from training_cases import examples, make_lm, plain

from aft_harness.boosters.provenance import Score
from aft_harness.training.loop import EpochLosses
from aft_harness.training.result import TrainingResult, loss_table
from aft_harness.training.train import train

MAGIC = {".png": b"\x89PNG", ".svg": b"<?xml"}


@pytest.fixture(scope="module")
def trained() -> TrainingResult:
    lm = make_lm(double=False)
    return train(lm, [examples(lm, limit=7, dev_docs=4)], plain(epochs=3, batch_size=3))


def test_the_table_has_a_row_a_step_and_development_losses_at_the_ends_of_epochs() -> None:
    table = loss_table(
        [EpochLosses([4.0, 3.0], [2.0, 1.0], [0.2, 0.1]), EpochLosses([2.0, 1.0], [2.0, 1.0])],
        [Score(loss=9.0, n=1), Score(loss=8.0, n=1)],
    )
    nan = math.nan
    expected = pd.DataFrame(
        {
            "step": [1, 2, 3, 4],
            "epoch": [1, 1, 2, 2],
            "loss": [4.0, 3.0, 2.0, 1.0],
            "development_loss": [nan, 9.0, nan, 8.0],
            "divergence": [0.2, 0.1, nan, nan],
        }
    )
    pd.testing.assert_frame_equal(table, expected)
    assert loss_table([EpochLosses([4.0, 3.0], [2.0, 1.0])], [None])["development_loss"].isna().all()


def test_a_training_that_went_wrong_says_so(caplog: pytest.LogCaptureFixture) -> None:
    lm = make_lm(double=False)
    task = examples(lm, limit=7)
    with caplog.at_level(logging.WARNING, "aft_harness"):
        good = train(lm, [task], plain(epochs=2, batch_size=3, lr=1e-3))
        assert good.after.loss < good.before.loss and good.concerns == [] and not caplog.text
        wild = train(lm, [task], plain(epochs=2, batch_size=3, lr=1e6))
    size = f"{max(wild.relative_norm.values()):.3g} times as large as the residual stream"
    assert size in wild.concerns[-1] and size in caplog.text
    worse = replace(good, after=good.before)
    (concern,) = worse.concerns
    assert f"on training documents its loss is {good.before.loss:.4g}, against" in concern
    (concern,) = replace(good, after=Score(loss=math.nan, n=7)).concerns
    assert "does not help" in concern


def test_a_training_fills_the_table(trained: TrainingResult) -> None:
    table = trained.losses
    assert list(table.columns) == ["step", "epoch", "loss", "development_loss", "divergence"]
    assert table["step"].tolist() == list(range(1, 10)) and table["epoch"].tolist() == [1] * 3 + [2] * 3 + [3] * 3
    assert table["development_loss"].notna().tolist() == [False, False, True] * 3
    development = table["development_loss"].dropna().tolist()
    assert development.index(min(development)) + 1 == trained.kept_epoch and min(development) == trained.after.loss
    # Batches of 3, 3 and 1 documents.
    means = table.groupby("epoch")["loss"].apply(lambda losses: (losses * [3, 3, 1]).sum() / 7).tolist()
    assert means == pytest.approx(trained.epoch_losses)


def test_without_development_documents_there_are_no_development_losses() -> None:
    lm = make_lm(double=False)
    found = train(lm, [examples(lm, limit=4)], plain(epochs=2, batch_size=4)).losses
    assert len(found) == 2 and found["development_loss"].isna().all()


@pytest.mark.parametrize(
    ("name", "picture"), [("curves.png", "curves.png"), ("curves.svg", "curves.svg"), ("curves.csv", "curves.png")]
)
def test_curves_are_a_table_and_a_picture_beside_it(
    trained: TrainingResult, tmp_path: Path, name: str, picture: str
) -> None:
    written = trained.save_curves(tmp_path / name)
    assert written == (tmp_path / "curves.csv", tmp_path / picture)
    assert {path.name for path in tmp_path.iterdir()} == {"curves.csv", picture}
    pd.testing.assert_frame_equal(pd.read_csv(written[0]), trained.losses)
    assert written[1].read_bytes().startswith(MAGIC[written[1].suffix])


def test_the_plot_shows_every_step_and_every_development_loss(trained: TrainingResult, tmp_path: Path) -> None:
    figure = trained.plot()
    training, development = figure.axes[0].get_lines()
    assert list(training.get_ydata()) == trained.losses["loss"].tolist()
    assert list(development.get_xdata()) == [3, 6, 9]
    trained.plot(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_bytes().startswith(MAGIC[".svg"])
