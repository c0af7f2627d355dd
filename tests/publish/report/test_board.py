from __future__ import annotations

import json

from report_cases import HOSTILE, decoded, row, sweep_row

from aft_harness.publish.report import board
from aft_harness.publish.report.board import details_data, encoded, for_script, heat_maps, leaderboard_data


def test_columns_that_say_the_same_everywhere_are_left_out() -> None:
    keys = [column.key for column in board.leaderboard_columns([row(), row(task="b")])]
    assert keys[:3] == ["outcome", "booster", "task"] and "model" not in keys
    several = [row(), row(model="other", seed="1", strength=0.5)]
    keys = [column.key for column in board.leaderboard_columns(several)]
    assert keys[:6] == ["outcome", "model", "booster", "strength", "seed", "task"]
    ends = [[(column.key, column.wide) for column in board.leaderboard_columns([row(p_holm=p)])][-1] for p in (None, 1)]
    assert ends == [("p", False), ("p_holm", False)]


def test_the_data_hold_what_the_table_says() -> None:
    rows = [row(), row(task="b", p_holm=None, metric="f1", ci_low=None, ci_high=None), row(task="c", p_holm=0.5)]
    found = leaderboard_data(rows, {"f1"})
    assert found["count"] == 3 and found["compared"]
    shown = {key: decoded(column, 3) for key, column in found["shown"].items()}
    assert shown["task"] == ["a", "b", "c"]
    assert shown["outcome"] == ["gained", "not corrected", "undecided"]
    assert shown["change"] == ["+10.0 points [+2.0, +18.0]", "+10.0 points [unknown]", "+10.0 points [+2.0, +18.0]"]
    assert found["by"]["change"] == [0.1, -0.1, 0.1]  # better ones are larger
    assert found["by"]["p_holm"] == [0.001, None, 0.5]
    details = {name: decoded(column, 3) for name, column in details_data(rows).items()}
    assert details["metric"] == ["acc", "f1", "acc"] and details["booster_sha256"] == ["ab" * 32] * 3
    assert details["ci_low"] == ["0.02", "", "0.02"] and "chosen" not in details and "sweep" not in details


def test_equal_texts_are_stored_once() -> None:
    assert encoded(["a", "b", "a"]) == {"values": ["a", "b"], "index": [0, 1, 0]}
    assert encoded(["a", "a"]) == {"values": ["a"], "index": None}


def test_intervals_lie_on_one_scale_with_better_to_the_right() -> None:
    rows = [
        row(delta=0.1, ci_low=0.05, ci_high=0.2),
        row(delta=-0.1, ci_low=-0.2, ci_high=-0.05),
        row(metric="bits", gained=None, lost=None, delta=-2.0, ci_low=-4.0, ci_high=-1.0),
        row(delta=0.0, ci_low=None, ci_high=None),
    ]
    spans = leaderboard_data(rows, {"bits"})["spans"]
    assert spans == [[62, 74, 98], [2, 26, 38], [62, 74, 98], [50, 50, 50]]


def test_a_cell_knows_the_rows_behind_it() -> None:
    rows = [
        row(seed="pooled", gained=None, lost=None),
        row(seed="0", p_holm=None),
        row(seed="1", p_holm=None, booster_sha256="cd" * 32),
        row(metric="acc_norm", seed="0", p_holm=None),
        row(task="b", seed="0", delta=-0.05, p_holm=0.2),
        sweep_row(1, sweep="s"),
    ]
    (found,) = heat_maps(rows, ())
    assert (found.panel.sources, [column.task for column in found.panel.columns]) == (("a",), ["a", "b"])
    first, second = found.lines[0]
    assert first and second
    assert (first["rows"], second["rows"]) == ("0 1 2 3", "4")
    assert (first["text"], first["outcome"], second["text"], second["outcome"]) == ("+10.0", "gain", "-5.0", "open")
    assert first["shade"].startswith("g") and second["shade"].startswith("l")
    assert heat_maps(rows[:1], ()) == [] and heat_maps([], ()) == []


def test_cells_that_were_not_evaluated_are_empty() -> None:
    rows = [row(), row(task="b"), row(trained_on="b", booster="aft b L1", booster_sha256="cd" * 32)]
    (found,) = heat_maps(rows, ())
    assert [[cell is not None for cell in line] for line in found.lines] == [[True, True], [True, False]]


def test_a_large_heat_map_is_cut_and_says_so() -> None:
    rows = [row(trained_on=f"t{place}", booster=f"b{place}", booster_sha256=f"{place:064x}") for place in range(100)]
    (found,) = heat_maps(rows, ())
    assert (len(found.lines), found.omitted) == (board.MOST_LINES, 100 - board.MOST_LINES)


def test_no_text_in_the_data_can_end_their_element() -> None:
    text = for_script({"a": HOSTILE})
    assert json.loads(text) == {"a": HOSTILE}
    assert not set("<>&\u2028\u2029") & set(text)
