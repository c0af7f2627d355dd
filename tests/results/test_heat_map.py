from __future__ import annotations

import pandas as pd
import pytest
from synthetic_runs import lines, run

from aft_harness.results.heat_map import alike, panels
from aft_harness.results.leaderboard import corrected
from aft_harness.results.runs import rows
from aft_harness.results.table import to_frame, to_rows


def frame(*made: object) -> pd.DataFrame:
    return to_frame(corrected(rows(list(made))))  # type: ignore[arg-type]


def test_a_cell_has_the_change_and_a_shade_in_proportion_to_the_column() -> None:
    before, half, whole = [0] * 10, [1] * 5 + [0] * 5, [1] * 10
    found = frame(
        run({"a": lines(before)}),
        run({"a": lines(half)}, "s"),
        run({"a": lines(whole)}, "t", trained_on=["b"]),
    )
    (panel,) = panels(found)
    assert (panel.model, panel.dtype, panel.sources) == ("toy", "float32", ("a", "b"))
    (column,) = panel.columns
    assert (column.task, column.metric, column.n, column.baseline, column.scale) == ("a", "acc", 10, 0.0, 100)
    one, other = panel.cells[0, 0], panel.cells[1, 0]
    assert (one.change, other.change) == (50.0, 100.0)
    assert other.shade / one.shade == pytest.approx(2) and 0 < other.shade <= 1
    assert other.significant and {alike(cell.row) for cell in panel.cells.values()} == {
        alike(row) for row in to_rows(found)
    }


def test_less_may_be_better_and_units_differ() -> None:
    found = frame(run({"a": lines([1.5, 2, 3], "loss")}), run({"a": lines([1, 1.5, 2.5], "loss")}, "s"))
    worse, better = panels(found)[0].cells[0, 0], panels(found, {"loss"})[0].cells[0, 0]
    assert worse.change == better.change == pytest.approx(-0.5)
    assert worse.shade == -better.shade < 0


def test_the_pooled_row_stands_for_its_seeds_and_prompts_keep_apart() -> None:
    seeds = [run({"a": lines([1, 0, 1])}, f"s{seed}", seed) for seed in (0, 1)]
    other = [run({"a": lines([0, 0, 1], prompt="q")}), run({"a": lines([1, 1, 1], prompt="q")}, "s0", 0)]
    found = to_frame(rows([run({"a": lines([0, 0, 1])}), *seeds, *other]))
    (panel,) = panels(found)
    assert len(panel.columns) == 2 and all(len(column.prompts) == 8 for column in panel.columns)
    assert {cell.row["seed"] for cell in panel.cells.values()} == {"pooled", "0"}
