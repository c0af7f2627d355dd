from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from synthetic_runs import lines, run

from aft_harness.errors import TaskError
from aft_harness.results import plots
from aft_harness.results.leaderboard import corrected
from aft_harness.results.plots import plot_losses, plot_sweep, plot_transfer
from aft_harness.results.runs import rows
from aft_harness.results.table import to_frame


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, to look at their parts."""
    figures: list[Figure] = []
    save = plots.save
    monkeypatch.setattr(plots, "save", lambda figure, path: (figures.append(figure), save(figure, path)))
    return figures


def boosters() -> pd.DataFrame:
    runs = [
        run({"a": lines([0, 0, 1]), "b": lines([0, 1, 1])}),
        run({"a": lines([1, 0, 1]), "b": lines([0, 0, 1])}, "s"),
        run({"a": lines([0, 0, 1]), "b": lines([1, 1, 1])}, "t", trained_on=["b"]),
    ]
    return to_frame(corrected(rows(runs)))


def sweep(layers: list[int]) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    baseline = run({"a": lines(rng.integers(0, 2, 30))})
    points = []
    for place, layer in enumerate(layers):
        steered = run({"a": lines(rng.integers(0, 2, 30))}, f"s{layer}", layers=[layer])
        points += [{**row, "chosen": int(place == 1)} for row in rows([baseline, steered])]
    return to_frame(points)


def test_other_prompts_and_documents_are_columns_of_a_heat_map(tmp_path: Path, drawn: list[Figure]) -> None:
    made = []
    for prompt, outcomes in (("p", [0, 1, 1]), ("chat", [0, 1, 1]), ("p", [0])):
        baseline, steered = lines(outcomes, prompt=prompt), lines([1] * len(outcomes), prompt=prompt)
        made += rows([run({"a": baseline}), run({"a": steered}, "s")])
    plot_transfer(to_frame(corrected(made)), tmp_path / "map.png")
    labels = [label.get_text() for label in drawn[0].axes[0].get_xticklabels()]
    assert len(set(labels)) == 3 and all("prompts " in label for label in labels)
    assert len(drawn[0].axes[0].texts) == 3


def test_a_dollar_sign_starts_no_formula(tmp_path: Path) -> None:
    frame = boosters().assign(model=r"$\frac$", trained_on=r"a$\x$", task=r"$_^$")
    plot_transfer(frame, tmp_path / "map.svg")
    plot_sweep(sweep([0, 1]).assign(task=r"$\frac$"), "layers", tmp_path / "sweep.svg")


def test_an_interval_that_is_unknown_or_ends_on_its_point_is_drawn(tmp_path: Path, drawn: list[Figure]) -> None:
    frame = sweep([0, 1, 2])
    frame.loc[0, ["ci_low", "ci_high"]] = float("nan")
    frame.loc[1, ["ci_low", "ci_high"]] = np.nextafter(frame["delta"][1], [1, -1])  # beyond it, by rounding
    plot_sweep(frame, "layers", tmp_path / "sweep.png")
    assert len(drawn) == 1


@pytest.mark.parametrize("form", ["png", "svg"])
def test_the_heat_map_is_drawn_the_same_each_time(tmp_path: Path, form: str) -> None:
    for name in ("one", "two"):
        plot_transfer(boosters(), tmp_path / f"{name}.{form}")
    image = (tmp_path / f"one.{form}").read_bytes()
    assert image == (tmp_path / f"two.{form}").read_bytes()
    if form == "svg":
        assert b"<svg" in image
    with pytest.raises(TaskError, match=r"must end in \.png or \.svg"):
        plot_transfer(boosters(), tmp_path / "map.pdf")
    with pytest.raises(TaskError, match=r"map\.svg: there are no rows to plot"):
        plot_transfer(boosters()[:0], tmp_path / "map.svg")


def test_the_heat_map_loses_no_model_and_no_booster(tmp_path: Path) -> None:
    other = {"name": "other", "fingerprint": "e" * 64}
    made = rows(
        [
            *(run({"a": lines([0, 0, 1])}, base=base) for base in (None, other)),
            *(run({"a": lines([1, 0, 1])}, sha, base=base) for sha, base in (("s", None), ("t", other))),
            run({"a": lines([1, 1, 1])}, "u", trained_n=10),
        ]
    )
    plot_transfer(to_frame(corrected(made)), tmp_path / "map.svg")
    image = (tmp_path / "map.svg").read_text()  # each text of the picture stands in a comment before its glyphs
    for text in ("toy, float32", "other, float32", "aft a L3-4, 9", "aft a L3-4, 10", "+33.3", "+66.7"):
        assert f"<!-- {text} -->" in image
    assert image.count("<!-- +33.3 -->") == 2


def test_the_heat_map_has_a_title_a_unit_and_a_colour_bar(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_transfer(boosters(), tmp_path / "map.png")
    (figure,) = drawn
    assert "points" in figure.get_suptitle()
    axis, bar = figure.axes
    assert axis.get_title() == "toy, float32"
    assert [label.get_text() for label in bar.get_yticklabels()] == ["worse", "no change", "better"]
    assert bar.get_ylim() == (-1, 1)


def test_less_of_some_metrics_is_better(tmp_path: Path, drawn: list[Figure]) -> None:
    made = rows([run({"a": lines([0.5, 2, 3], "loss")}), run({"a": lines([0, 1, 1], "loss")}, "s")])
    for lower in ((), ("loss",)):
        plot_transfer(to_frame(made), tmp_path / "map.png", lower)
    higher, lower_is_better = (float(figure.axes[0].collections[0].get_array().item()) for figure in drawn)
    assert higher == -lower_is_better < 0


def test_a_sweep_over_layers_counts_them_in_whole_numbers(tmp_path: Path, drawn: list[Figure]) -> None:
    frame = sweep([3, 4, 5])
    plot_sweep(frame, "layers", tmp_path / "sweep.png")
    (figure,) = drawn
    (axis,) = figure.axes
    assert all(tick == round(tick) for tick in axis.get_xticks())
    points, chosen = (line for line in axis.lines if line.get_linestyle() == "None")
    assert points.get_ydata().tolist() == pytest.approx((100 * frame["delta"]).tolist())
    assert (chosen.get_xdata().tolist(), chosen.get_ydata().tolist()) == ([4], [pytest.approx(100 * frame["delta"][1])])
    # The legend stands beside the axes: it hides nothing.
    figure.draw_without_rendering()
    assert not figure.legends[0].get_window_extent().overlaps(axis.get_window_extent())


def test_a_sweep_over_strengths_may_have_chosen_nothing(tmp_path: Path, drawn: list[Figure]) -> None:
    frame = sweep([3, 3, 3]).assign(strength=[0.5, 1.0, 2.0]).drop(columns="chosen")
    plot_sweep(frame, "strength", tmp_path / "sweep.svg")
    assert not drawn[0].legends and drawn[0].axes[0].get_xlabel() == "strength"
    with pytest.raises(TaskError, match=r"sweep\.svg: a plot over layers needs a single value"):
        plot_sweep(frame.assign(layers="3,4"), "layers", tmp_path / "sweep.svg")


def losses(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"step": [1, 2, 3, 4], "epoch": [1, 1, 2, 2], "loss": [2.0, 1.5, 1.2, 1.1], **columns})


def test_both_curves_of_a_training_are_drawn(tmp_path: Path) -> None:
    frame = losses(development_loss=[np.nan, 1.7, np.nan, 1.4])
    figure = plot_losses(frame, tmp_path / "losses.png")
    (axis,) = figure.axes
    curves = [(list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines]
    assert curves == [([1, 2, 3, 4], [2.0, 1.5, 1.2, 1.1]), ([2, 4], [1.7, 1.4])]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("optimiser step (2 epochs)", "mean loss")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["training, each step", "development"]
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    for alone in (losses(), losses(development_loss=[np.nan] * 4)):
        assert len(plot_losses(alone).axes[0].lines) == 1


def test_a_figure_belongs_to_its_caller(tmp_path: Path) -> None:
    before = pyplot.get_backend(), pyplot.get_fignums()
    figure = plot_losses(losses(), tmp_path / "losses.svg")
    assert (pyplot.get_backend(), pyplot.get_fignums()) == before
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
