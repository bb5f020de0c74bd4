"""Layer-wise scaling against OpenELM's published sizes, and at its edges."""

from __future__ import annotations

import math
from itertools import chain, repeat

import pytest

from avpretrain.config.scaling import LayerScaling, LayerSizes, make_divisible, uniform


def runs(*pairs: tuple[int, int]) -> tuple[int, ...]:
    return tuple(chain.from_iterable(repeat(value, times) for value, times in pairs))


@pytest.mark.parametrize(
    ("depth", "width", "head_width", "heads", "ends"),
    [
        (16, 1280, 64, runs((12, 5), (16, 7), (20, 4)), (768, 5120)),
        (20, 1536, 64, runs((12, 3), (16, 7), (20, 6), (24, 4)), (768, 6144)),
        (28, 2048, 64, runs((16, 3), (20, 7), (24, 8), (28, 6), (32, 4)), (1024, 8192)),
        (36, 3072, 128, runs((12, 4), (16, 14), (20, 12), (24, 6)), (1536, 12288)),
    ],
)
def test_openelm_sizes(depth: int, width: int, head_width: int, heads: tuple[int, ...], ends: tuple[int, int]) -> None:
    sizes = LayerScaling(divisor=256).sizes(width, depth, head_width, heads_per_group=4)
    assert sizes.heads == heads
    assert (sizes.hidden[0], sizes.hidden[-1]) == ends
    if depth == 16:
        hidden = "768 1024 1280 1536 1792 2048 2560 2816 3072 3328 3584 3840 4352 4608 4864 5120"
        assert sizes.hidden == tuple(map(int, hidden.split()))


def test_rounding_to_two_decimals_matters() -> None:
    # beta of block 7 is 2.1333: 2731 unrounded
    sizes = LayerScaling(divisor=1).sizes(1280, 16, 64)
    assert sizes.hidden[7] == round(2.13 * 1280)


def test_ends_reversed_and_flat() -> None:
    up = LayerScaling(divisor=32).sizes(384, 12, 32)
    assert up.heads == (6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12)
    assert sum(up.hidden) == 10368
    assert up.reversed().reversed() == up
    assert up.reversed().hidden[0] == up.hidden[-1]
    assert LayerScaling(alpha=(1, 1), beta=(4, 4)).sizes(64, 3, 16) == uniform(3, 4, 256)
    assert LayerScaling(alpha=(1, 0.5)).sizes(64, 1, 16).heads == (4,)
    assert LayerScaling().sizes(64, 0, 16) == uniform(0, 4, 256)


@pytest.mark.parametrize(
    ("value", "divisor", "nearest"), [(1, 8, 8), (12, 8, 16), (11.9, 8, 16), (20, 8, 24), (35, 8, 32), (75, 64, 128)]
)
def test_make_divisible(value: float, divisor: int, nearest: int) -> None:
    assert make_divisible(value, divisor) == nearest


def test_impossible_values() -> None:
    for values in ({"alpha": (0, 1)}, {"beta": (1, math.nan)}, {"alpha": (1, math.inf)}, {"divisor": 0}):
        with pytest.raises(ValueError, match=next(iter(values))):
            LayerScaling(**values)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one entry a block"):
        LayerSizes((1, 2), (3,))
