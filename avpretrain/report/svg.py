"""Charts as inline SVG: lines, points with intervals, horizontal bars.

Colours are CSS variables, which the page sets for light and dark. Charts are drawn for a width of 360 px, that of a
phone, and grow from there without loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from avpretrain.core.terminal import escape

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 36
MAX_POINTS = 400
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
    """One row of a bar chart: its label and its value stand above the bar."""

    label: str
    value: str
    segments: Sequence[Segment]
    interval: tuple[float, float] | None = None
    muted: bool = False


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten) that cover [low, high], about `count` of them."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
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


@dataclass(frozen=True, slots=True)
class _Axes:
    """Data to pixels."""

    x_max: float
    """The x axis begins at 0."""
    y_ticks: list[float]

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / self.x_max

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    def drawn(self, x_label: str, y_labels: Labels) -> str:
        """Grid, tick labels, and the name of the x axis."""
        parts = []
        for value, label in zip(self.y_ticks, y_labels(self.y_ticks), strict=True):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>')
        x_ticks = [value for value in ticks(0.0, self.x_max) if value <= self.x_max * 1.001]
        for value, label in zip(x_ticks, tick_labels(x_ticks), strict=True):
            place = f'x="{self.x(value):.1f}" y="{HEIGHT - BOTTOM + 15}"'
            parts.append(f'<text {place} text-anchor="middle">{label}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>')
        return "".join(parts)


def _svg(height: int | float, title: str, body: str, data: str = "") -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}"{data}>'
    return f"{head}<title>{escape(title)}</title>{body}</svg>"


def chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    *,
    points: bool = False,
    steps: bool = False,
    y_labels: Labels = tick_labels,
    from_zero: bool = False,
) -> str:
    """Lines or points over a number.

    Args:
        title: what a reader who can't see the chart is told.
        points: draws points with intervals instead of lines.
        steps: a value holds back to the one before, and lines may lie on top of each other.
        from_zero: the y axis begins at 0.
    """
    drawn = [(s, thinned(s.xs, s.ys)) for s in series]
    xs = [x for _, line in drawn for x, _ in line] or [0.0]
    ys = [y for _, line in drawn for _, y in line] or [0.0]
    ys += [v for s in series for interval in s.intervals if interval for v in interval]
    room = 1.06 if points else 1.0  # a point must not sit on the edge
    axes = _Axes(room * max(xs) or 1.0, ticks(0.0 if from_zero else min(ys), max(ys)))
    body = axes.drawn(x_label, y_labels)
    for i, (s, line) in enumerate(drawn):
        # Schedules often coincide; wider lines below narrower ones keep all of them visible.
        width = 1.8 + (2.4 * min(3, len(drawn) - 1 - i) if steps else 0.0)
        body += _points(s, axes) if points else _line(s, line, axes, steps, width)
    corners = (0.0, axes.x_max, axes.y_ticks[0], axes.y_ticks[-1])
    box = (LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, TOP)
    data = f' data-range="{_spaced(corners)}" data-box="{_spaced(box)}" data-x="{escape(x_label)}"'
    return _svg(HEIGHT, title, body, "" if points else data)


def _spaced(values: Sequence[int | float]) -> str:
    return " ".join(f"{v:g}" for v in values)


def _line(series: Series, line: Sequence[tuple[float, float]], axes: _Axes, steps: bool, width: float) -> str:
    if not line:
        return ""
    places = [(axes.x(x), axes.y(y)) for x, y in line]
    if steps:
        start = (axes.x(0.0), places[0][1])
        places = [start] + [p for a, b in pairwise([start, *places]) for p in ((a[0], b[1]), b)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dash = ' stroke-dasharray="5 4"' if series.dashed else ""
    x, y = places[-1]
    label = escape(series.label)
    return (
        f'<polyline class="line c{series.colour}" points="{path}" stroke-width="{width:g}" data-label="{label}"{dash}/>'
        f'<circle class="dot c{series.colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
    )


def _points(series: Series, axes: _Axes) -> str:
    parts = []
    intervals = series.intervals or [None] * len(series.xs)
    for x, y, interval in zip(series.xs, series.ys, intervals, strict=True):
        px, py = axes.x(x), axes.y(y)
        if interval:
            low, high = axes.y(interval[0]), axes.y(interval[1])
            parts.append(f'<path class="whisker c{series.colour}" d="M{px:.1f} {low:.1f}V{high:.1f}"/>')
        title = f"<title>{escape(series.label)}</title>"
        parts.append(f'<circle class="dot c{series.colour}" cx="{px:.1f}" cy="{py:.1f}" r="5">{title}</circle>')
    return "".join(parts)


def bars(title: str, rows: Sequence[Bar], maximum: float) -> str:
    """Horizontal bars from 0 to `maximum`, each under its label and value."""
    row_height, thickness, scale = 40, 14, WIDTH / (maximum or 1.0)
    parts = []
    for i, row in enumerate(rows):
        y = i * row_height
        css = ' class="muted"' if row.muted else ""
        parts.append(f'<text{css} x="0" y="{y + 13}">{escape(row.label)}</text>')
        parts.append(f'<text{css} x="{WIDTH}" y="{y + 13}" text-anchor="end">{escape(row.value)}</text>')
        parts.append(f'<rect class="track" x="0" y="{y + 19}" width="{WIDTH}" height="{thickness}"/>')
        for segment in row.segments:
            x, width = segment.start * scale, max(0.0, (segment.end - segment.start) * scale)
            name = f"<title>{escape(segment.title)}</title>" if segment.title else ""
            place = f'x="{x:.2f}" y="{y + 19}" width="{width:.2f}" height="{thickness}"'
            parts.append(f'<rect class="bar {segment.css}" {place}>{name}</rect>')
        if row.interval:
            low, high = (v * scale for v in row.interval)
            middle = y + 19 + thickness / 2
            ends = f"M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8"
            parts.append(f'<path class="interval" d="M{low:.1f} {middle}H{high:.1f}{ends}"/>')
    return _svg(len(rows) * row_height - (row_height - 19 - thickness), title, "".join(parts))
