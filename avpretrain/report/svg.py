"""Charts of the page: where lines, points, whiskers and bars lie. The templates chart.svg and bars.svg draw them.

Charts are drawn for a width of 360 px, that of a phone, and grow from there without loss. Colours are CSS classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 36
MAX_POINTS = 400
FEWEST_TICKS = 4
Labels = Callable[[Sequence[float]], list[str]]
_SCALES = ((1e18, " E"), (1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k"))
_FIRST_SCALED = 5000.0
"""Ticks up to here are written out: 500, 1000."""


@dataclass(frozen=True, slots=True)
class Series:
    """A line or a set of points."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: int
    """Index of the colour: CSS class `c0`, `c1`, ..."""
    intervals: Sequence[tuple[float, float] | None] = ()
    """Of each point; drawn as whiskers."""
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a bar, from `start` to `end` in data units."""

    start: float
    end: float
    css: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """One row of a bar chart: its label and its value stand above the bar, a remark below it."""

    label: str
    value: str
    segments: Sequence[Segment]
    interval: tuple[float, float] | None = None
    muted: bool = False
    remark: str = ""


# --- axes ------------------------------------------------------------------------------------------------------------


def ticks(low: float, high: float, inside: bool = False) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten) over [low, high], as few as there can be from `FEWEST_TICKS` on.

    Args:
        inside: none lies above `high`; otherwise they cover it.
    """
    if high <= low:
        high = low + (abs(low) or 1.0)
    power = 10.0 ** math.ceil(math.log10(high - low))
    for step in (m * power / 10**i for i in range(4) for m in (5, 2, 1)):
        first, last = math.floor(low / step + 1e-9), high / step
        last = math.floor(last + 1e-9) if inside else math.ceil(last - 1e-9)
        if last - first + 1 >= FEWEST_TICKS:
            break
    return [round(i * step, 12) for i in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Short labels of an axis, all with the same decimals and prefix: 0.80, 0.85, 0.90; 0, 10 k, 20 k."""
    largest = max(map(abs, values))
    scale, prefix = next((x for x in _SCALES if largest >= max(x[0], _FIRST_SCALED)), (1.0, ""))
    step = (values[1] - values[0]) / scale if len(values) > 1 else 1.0
    decimals = min(6, max(0, -math.floor(math.log10(step) + 1e-9)))
    return [f"{v / scale:.{decimals}f}{prefix}" if v else "0" for v in values]


def thinned(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    """Finite points, at most `MAX_POINTS` of them: neighbours are averaged."""
    points = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
    size = math.ceil(len(points) / MAX_POINTS) or 1
    chunks = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in c) / len(c), sum(y for _, y in c) / len(c)) for c in chunks]


# --- lines and points ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Point:
    """A dot, in pixels, with its whisker from `low` to `high`."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A series in pixels: a path through places, and its dots."""

    series: Series
    path: str
    width: float
    dots: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines or points over a number, in pixels."""

    template: ClassVar[str] = "chart.svg"
    title: str
    x_label: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    lines: Sequence[Line]
    points: bool
    range: str
    """First and last value of x, then of y, for the page's script."""
    box: ClassVar[tuple[int, int, int, int]] = (LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, TOP)
    width: ClassVar[int] = WIDTH
    height: ClassVar[int] = HEIGHT


def chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    *,
    points: bool = False,
    steps: bool = False,
    y_labels: Labels = tick_labels,
    from_zero: bool = False,
) -> Chart:
    """Lines or points over a number; the x axis begins at 0.

    Args:
        title: what a reader who can't see the chart is told.
        points: draws points with intervals, joined by a thin line, instead of lines.
        steps: a value holds back to the one before, and lines may lie on top of each other.
        from_zero: the y axis begins at 0.
    """
    drawn = [thinned(s.xs, s.ys) for s in series]
    xs = [x for line in drawn for x, _ in line] or [0.0]
    ys = [y for line in drawn for _, y in line] or [0.0]
    ys += [v for s in series for interval in s.intervals if interval for v in interval]
    x_max = (1.06 if points else 1.0) * max(xs) or 1.0  # a point must not sit on the edge
    y_values, x_values = ticks(0.0 if from_zero else min(ys), max(ys)), ticks(0.0, x_max * 1.001, inside=True)
    low, high = y_values[0], y_values[-1]

    def px(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * x / x_max

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - low) / (high - low)

    def line(i: int) -> Line:
        s = series[i]
        places = [(px(x), py(y)) for x, y in drawn[i]]
        intervals = (s.intervals or [None] * len(s.xs)) if points else ()
        dots = [
            Point(px(x), py(y), *((py(v) for v in interval) if interval else ()))
            for x, y, interval in zip(s.xs, s.ys, intervals, strict=True)
        ] if points else [Point(*place) for place in places[-1:]]  # fmt: skip
        if steps and places:
            start = (px(0.0), places[0][1])
            places = [start] + [p for a, b in pairwise([start, *places]) for p in ((a[0], b[1]), b)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        # Schedules often coincide; wider lines below narrower ones keep all of them visible.
        wider = 2.4 * min(3, len(series) - 1 - i) if steps else 0.0
        return Line(s, path, 1.0 if points else 1.8 + wider, dots)

    return Chart(
        title,
        x_label,
        [(px(v), label) for v, label in zip(x_values, tick_labels(x_values), strict=True)],
        [(py(v), label) for v, label in zip(y_values, y_labels(y_values), strict=True)],
        [line(i) for i in range(len(series))],
        points,
        f"0 {x_max:g} {low:g} {high:g}",
    )


# --- bars ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BarChart:
    """Horizontal bars from 0 to `maximum`, each under its label and value."""

    template: ClassVar[str] = "bars.svg"
    title: str
    rows: Sequence[Bar]
    maximum: float
    width: ClassVar[int] = WIDTH
    thickness: ClassVar[int] = 14

    @property
    def scale(self) -> float:
        """Pixels of a unit."""
        return WIDTH / (self.maximum or 1.0)

    @property
    def tops(self) -> list[int]:
        """Where each row begins, and last where the chart ends."""
        tops = [0]
        for row in self.rows:
            tops.append(tops[-1] + (56 if row.remark else 40))
        return [*tops[:-1], max(0, tops[-1] - 7)]
