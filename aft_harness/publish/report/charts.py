"""Small charts as numbers: where points, intervals, lines and ticks of an SVG picture lie.

Knows geometry only. Colours and the drawing are the template's, so that a chart follows the page's theme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 640, 296
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 30, 46


@dataclass(frozen=True)
class Point:
    """A point of a series, in the unit of the data.

    Attributes:
        x: Where it lies.
        y: Its value.
        low: Lower end of its interval; None without one.
        high: Its upper end.
        left: Lower end of an interval along x; None without one.
        right: Its upper end.
        label: What a reader is told of it.
        marked: Whether it stands out.
        sign: A short text beside it.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    left: float | None = None
    right: float | None = None
    label: str = ""
    marked: bool = False
    sign: str = ""


@dataclass(frozen=True)
class Series:
    """What belongs together.

    Attributes:
        name: For the legend.
        points: In the order in which a line joins them.
        line: Whether one does.
        dots: Whether points are drawn.
        style: Which of the page's styles: 1 or 2.
    """

    name: str
    points: Sequence[Point]
    line: bool = False
    dots: bool = True
    style: int = 1


@dataclass(frozen=True)
class Mark:
    """A point as it is drawn, in pixels; see `Point`."""

    x: float
    y: float
    low: float | None
    high: float | None
    left: float | None
    right: float | None
    label: str
    marked: bool
    sign: str


@dataclass(frozen=True)
class Drawn:
    """A series as it is drawn: the path of its line, and its points."""

    name: str
    path: str
    marks: list[Mark]
    style: int


@dataclass(frozen=True)
class Chart:
    """A picture, in pixels.

    Attributes:
        title: What it shows, also for who cannot see it.
        x_title: Of the horizontal axis.
        y_title: Of the vertical axis.
        x_ticks: Where, and what stands there.
        y_ticks: The same of the vertical axis.
        series: What is drawn.
        zero: Where the line of no change lies; None where it is not in the picture.
        zero_x: The same of a vertical line.
        head: Headings of the table of its numbers.
        rows: That table.
    """

    title: str
    x_title: str
    y_title: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    series: list[Drawn]
    zero: float | None = None
    zero_x: float | None = None
    head: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM

    @property
    def marked(self) -> bool:
        """Whether a point stands out."""
        return any(mark.marked for one in self.series for mark in one.marks)


def chart(
    title: str,
    series: Sequence[Series],
    x_title: str,
    y_title: str,
    *,
    whole: bool = False,
    with_zero: bool = False,
    crossed: bool = False,
    names: Sequence[str] = (),
    head: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
) -> Chart | None:
    """Lays out a chart; points that are not finite numbers are left out.

    Args:
        title: What it shows.
        series: What to draw.
        x_title: Of the horizontal axis.
        y_title: Of the vertical axis.
        whole: Ticks of the horizontal axis are whole numbers.
        with_zero: The vertical axis has zero.
        crossed: The horizontal axis has zero, too, and a line there.
        names: Texts of the ticks at 0, 1, ... of the horizontal axis, in place of numbers.
        head: Headings of the table of its numbers.
        rows: That table.

    Returns:
        None where there is no point.
    """
    kept = [
        (one, [point for point in one.points if math.isfinite(point.x) and math.isfinite(point.y)]) for one in series
    ]
    points = [point for _, found in kept for point in found]
    if not points:
        return None
    xs = _finite([value for point in points for value in (point.x, point.left, point.right)])
    ys = _finite([value for point in points for value in (point.y, point.low, point.high)])
    x_axis = _Axis([*xs, 0.0] if crossed else xs, LEFT, WIDTH - RIGHT, padded=0.04, whole=whole or bool(names))
    y_axis = _Axis([*ys, 0.0] if with_zero else ys, HEIGHT - BOTTOM, TOP, padded=0.06)
    if names:
        step = math.ceil(len(names) / 12)
        x_ticks = [(x_axis.at(place), name) for place, name in enumerate(names) if place % step == 0]
    else:
        x_ticks = x_axis.ticks()
    return Chart(
        title=title,
        x_title=x_title,
        y_title=y_title,
        x_ticks=x_ticks,
        y_ticks=y_axis.ticks(),
        series=[_drawn(one, found, x_axis, y_axis) for one, found in kept if found],
        zero=y_axis.at(0.0) if y_axis.low <= 0 <= y_axis.high else None,
        zero_x=x_axis.at(0.0) if crossed else None,
        head=list(head),
        rows=[list(row) for row in rows],
    )


def sparkline(values: Sequence[float], width: int = 120, height: int = 28) -> str:
    """The path of a line through values, without axes; nothing for fewer than two numbers."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    x_axis = _Axis([0, len(finite) - 1], 2, width - 2)
    y_axis = _Axis(finite, height - 3, 3)
    return _path([(x_axis.at(place), y_axis.at(value)) for place, value in enumerate(finite)])


class _Axis:
    """From values to pixels."""

    def __init__(
        self, values: Sequence[float], start: float, stop: float, padded: float = 0.0, whole: bool = False
    ) -> None:
        low, high = min(values), max(values)
        room = (high - low) * padded if high > low else (abs(high) or 1.0) * 0.5
        self.low, self.high = low - room, high + room
        self.start, self.stop, self.whole = start, stop, whole

    def at(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start), 1)

    def ticks(self) -> list[tuple[float, str]]:
        found = MaxNLocator(nbins=6, integer=self.whole).tick_values(self.low, self.high)
        inside = [float(value) for value in found if self.low <= value <= self.high]
        return [(self.at(value), f"{value:.6g}") for value in inside]


def _drawn(one: Series, points: Sequence[Point], x_axis: _Axis, y_axis: _Axis) -> Drawn:
    def at(axis: _Axis, value: float | None) -> float | None:
        return axis.at(value) if value is not None and math.isfinite(value) else None

    places = [(x_axis.at(point.x), y_axis.at(point.y)) for point in points]
    marks = [
        Mark(
            x=x,
            y=y,
            low=at(y_axis, point.low),
            high=at(y_axis, point.high),
            left=at(x_axis, point.left),
            right=at(x_axis, point.right),
            label=point.label,
            marked=point.marked,
            sign=point.sign,
        )
        for point, (x, y) in zip(points, places, strict=True)
    ]
    drawn_dots = one.dots or len(points) == 1  # a line needs two points
    return Drawn(one.name, _path(places) if one.line else "", marks if drawn_dots else [], one.style)


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + " L".join(f"{x:g} {y:g}" for x, y in places)


def _finite(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]
