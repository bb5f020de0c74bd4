"""Charts: ticks, labels, thinned series, steps."""

from __future__ import annotations

import pytest

from avpretrain.report.svg import Series, chart, thinned, tick_labels, ticks


@pytest.mark.parametrize(
    ("low", "high", "inside", "expected"),
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.81, 0.9, False, [0.8, 0.82, 0.84, 0.86, 0.88, 0.9]),
        (3, 3, False, [3, 4, 5, 6]),
        (0, 0.9, True, [0, 0.2, 0.4, 0.6, 0.8]),
        (0, 2064, True, [0, 500, 1000, 1500, 2000]),
    ],
)
def test_ticks_are_round_and_cover(low: float, high: float, inside: bool, expected: list[float]) -> None:
    assert ticks(float(low), float(high), inside) == pytest.approx(expected)


def test_every_axis_has_more_than_two_ticks() -> None:
    for high in (1.001**i * 1e-6 for i in range(0, 40_000, 37)):
        for low in (0.0, 0.3 * high, 0.97 * high):
            found = ticks(low, high)
            assert 4 <= len(found) <= 10 and found[0] <= low * (1 + 1e-6) + 1e-12 and found[-1] >= high * (1 - 1e-6)
        inner = ticks(0.0, high, inside=True)
        assert 4 <= len(inner) <= 10 and inner[-1] <= high * (1 + 1e-6) + 1e-12


def test_tick_labels_agree_with_each_other() -> None:
    assert tick_labels([0.8, 0.85, 0.9]) == ["0.80", "0.85", "0.90"]
    assert tick_labels([0.0, 500.0, 1000.0]) == ["0", "500", "1000"]
    assert tick_labels([0.0, 10_000.0, 20_000.0]) == ["0", "10 k", "20 k"]
    assert tick_labels([0.0, 0.0005, 0.001]) == ["0", "0.0005", "0.0010"]


def test_long_series_are_thinned_and_bad_values_left_out() -> None:
    xs = [float(i) for i in range(5000)]
    points = thinned(xs, xs)
    assert 300 < len(points) <= 400
    assert sum(y for _, y in points) / len(points) == pytest.approx(2499.5, rel=0.01)
    assert thinned([0.0, 1.0, 2.0], [1.0, float("nan"), 3.0]) == [(0.0, 1.0), (2.0, 3.0)]


def test_a_step_holds_back_to_the_value_before() -> None:
    drawn = chart("ratio", [Series("a", [10.0, 20.0], [0.9, 0.8], 0)], "clips", steps=True)
    places = [tuple(map(float, pair.split(","))) for pair in drawn.lines[0].path.split()]
    left, middle, right = 46.0, 197.0, 348.0
    assert [x for x, _ in places] == [left, left, middle, middle, right]
    assert len({y for _, y in places[:3]}) == len({y for _, y in places[3:]}) == 1
