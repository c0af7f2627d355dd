from __future__ import annotations

import math
import re

from aft_harness.publish.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Point, Series, chart, sparkline


def test_points_keep_their_order_and_stay_inside() -> None:
    points = [Point(float(x), float(x * x), low=x * x - 1.0, high=x * x + 1.0) for x in range(5)]
    made = chart("t", [Series("s", points, line=True)], "x", "y")
    assert made is not None
    (drawn,) = made.series
    xs, ys = [mark.x for mark in drawn.marks], [mark.y for mark in drawn.marks]
    assert xs == sorted(xs) and ys == sorted(ys, reverse=True)  # upwards is less in pixels
    for mark in drawn.marks:
        assert LEFT <= mark.x <= WIDTH - RIGHT
        assert mark.low is not None and mark.high is not None
        assert TOP <= mark.high < mark.y < mark.low <= HEIGHT - BOTTOM
    assert re.findall(r"[\d.]+ [\d.]+", drawn.path) == [f"{mark.x:g} {mark.y:g}" for mark in drawn.marks]


def test_pixels_are_proportional_to_values() -> None:
    made = chart("t", [Series("s", [Point(0, 0), Point(1, 1), Point(4, 2)])], "x", "y")
    assert made is not None
    one, two, three = made.series[0].marks
    assert math.isclose((three.x - one.x) / (two.x - one.x), 4, rel_tol=0.01)
    assert made.zero == one.y and made.zero_x is None
    ticks = {float(text): x for x, text in made.x_ticks}
    assert all(math.isclose(x, one.x + value * (two.x - one.x), abs_tol=0.5) for value, x in ticks.items()) and ticks


def test_what_is_no_number_is_left_out() -> None:
    points = [Point(0, math.nan), Point(1, 2.0, low=math.nan, high=3.0), Point(2, math.inf)]
    made = chart("t", [Series("s", points), Series("empty", [Point(math.nan, 1)])], "x", "y")
    assert made is not None and [len(one.marks) for one in made.series] == [1]
    assert made.series[0].marks[0].low is None
    assert chart("t", [Series("s", [Point(0, math.nan)])], "x", "y") is None


def test_one_point_and_a_flat_line_have_room() -> None:
    for points in ([Point(3, 0.5)], [Point(0, 0.0), Point(1, 0.0)]):
        made = chart("t", [Series("s", points, line=True, dots=False)], "x", "y", with_zero=True)
        assert made is not None and made.zero is not None and TOP <= made.zero <= HEIGHT - BOTTOM
    assert made.series[0].marks == []
    lone = chart("t", [Series("s", [Point(3, 0.5)], line=True, dots=False)], "x", "y")
    assert lone is not None and len(lone.series[0].marks) == 1  # a line needs two points


def test_ticks_may_be_whole_or_have_names() -> None:
    points = [Point(float(x), 1.0) for x in range(3)]
    whole = chart("t", [Series("s", points)], "x", "y", whole=True)
    assert whole is not None and all("." not in text for _, text in whole.x_ticks)
    named = chart("t", [Series("s", points)], "x", "y", names=["0-3", "8", "all"])
    assert named is not None and [text for _, text in named.x_ticks] == ["0-3", "8", "all"]
    assert [x for x, _ in named.x_ticks] == [mark.x for mark in named.series[0].marks]


def test_a_sparkline_needs_two_numbers() -> None:
    assert sparkline([1.0]) == sparkline([]) == sparkline([math.nan, 1.0]) == ""
    assert sparkline([2.0, 1.0, math.nan, 0.5]).count(" L") == 2
