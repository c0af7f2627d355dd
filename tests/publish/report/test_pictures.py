from __future__ import annotations

import pandas as pd
import pytest
from report_cases import row, sweep_row

from aft_harness.publish.report.pictures import MOST_POINTS, cost_chart, sweep_charts, training_chart
from aft_harness.publish.report.sources import Curve


def test_a_sweep_has_its_changes_and_the_loss_that_chose() -> None:
    rows = [
        sweep_row(int(layer == 2), sweep="mine", layers=str(layer), delta=0.01 * layer, development_loss=3.0 - layer)
        for layer in (3, 1, 2)
    ]
    norm = {"metric": "acc_norm", "p_holm": None, "delta": 0.9, "development_loss": 1.0}
    rows.append(sweep_row(1, sweep="mine", layers="2", **norm))
    ((name, (change, development)),) = sweep_charts(rows, ())
    assert name == "mine"
    marks = change.series[0].marks
    assert [mark.marked for mark in marks] == [False, True, False]  # in the order of the layers
    assert [mark.x for mark in marks] == sorted(mark.x for mark in marks)
    assert change.title == "a: change of acc (points), 100 test documents" and change.zero is not None
    assert {line[0]: line[3] for line in change.rows}["3"] == "+3.0 points [+2.0, +18.0]"
    assert [mark.y for mark in development.series[0].marks] == sorted(mark.y for mark in development.series[0].marks)
    assert [line[:2] for line in development.rows] == [["1", "2.0000"], ["2", "1.0000"], ["3", "0.0000"]]


def test_a_sweep_over_several_layers_at_once_has_names_for_numbers() -> None:
    rows = [sweep_row(int(layers == "all"), sweep="s", layers=layers) for layers in ("0-3", "all")]
    ((_, (change, *_)),) = sweep_charts(rows, ())
    assert [text for _, text in change.x_ticks] == ["0-3", "all"]


def test_curves_are_the_losses_of_their_file() -> None:
    losses = {"step": [1, 2, 3, 4], "epoch": [1, 1, 2, 2], "loss": [4.0, 3.0, 2.0, 1.0]}
    frame = pd.DataFrame({**losses, "development_loss": [None, 3.5, None, 2.5]}).astype(float)
    made = training_chart(Curve("mine", frame))
    assert made is not None
    training, development = made.series
    assert training.path.count("L") == 3 and not training.marks and len(development.marks) == 2
    by_epoch = frame.groupby("epoch")["loss"].mean()
    assert made.rows == [["1", "2", f"{by_epoch[1]:.4f}", "3.5000"], ["2", "2", f"{by_epoch[2]:.4f}", "2.5000"]]
    alone = training_chart(Curve("mine", frame[["step", "epoch", "loss"]]))
    assert alone is not None and len(alone.series) == 1 and alone.rows[0][3] == ""


def plain(**changes: object) -> dict[str, object]:
    bits = {"task": "plain_text", "metric": "bits_per_byte", "gained": None, "lost": None, "delta": 0.04, "transfer": 1}
    return row(**{**bits, "ci_low": 0.03, "ci_high": 0.05, **changes})


def test_gain_is_shown_against_cost_where_both_were_measured() -> None:
    rows = [row(), row(task="b", transfer=1), row(metric="acc_norm", p_holm=None), plain()]
    rows += [row(booster="without", booster_sha256="cd" * 32)]
    made = cost_chart(rows, {"bits_per_byte"})
    assert made is not None
    assert made.rows == [["1", "aft a L1 on a", "+10.0 points [+2.0, +18.0]", "+0.04 [+0.03, +0.05]", "100"]]
    (mark,) = made.series[0].marks
    assert mark.sign == "1" and mark.left is not None and mark.right is not None and mark.left < mark.x < mark.right
    assert made.zero_x is not None and made.zero is not None and "lower is better" in made.x_title
    assert cost_chart(rows[:3], ()) is None and cost_chart([plain()], ()) is None


def test_other_tasks_stand_in_where_nothing_was_learned_from() -> None:
    made = cost_chart([row(transfer=1, strength=0.5), plain(strength=0.5)], ())
    assert made is not None and made.rows[0][1] == "aft a L1 at strength 0.5 on a"


@pytest.mark.parametrize("count", [3, MOST_POINTS + 5])
def test_a_pooled_row_stands_for_its_seeds(count: int) -> None:
    seeds = [*map(str, range(count)), "pooled"]
    rows = [each(seed=seed) for seed in seeds for each in (row, plain)]
    made = cost_chart(rows, ())
    assert made is not None and len(made.rows) == 1
    boosters = [each(booster=f"b{place}", booster_sha256=f"{place}") for place in range(count) for each in (row, plain)]
    made = cost_chart(boosters, ())
    assert made is not None and len(made.rows) == min(count, MOST_POINTS)
