"""Layer-wise scaling: heads and MLP widths that grow (or shrink) from the first block of a stack to the last.

The residual width stays the same in all blocks; only the inner widths of a block change (Mehta et al. 2024, arXiv
2404.14619, section 2). A config gives the two ranges; the stack is built from the lists. Nothing here imports torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

HIGHEST = 64.0
"""Largest multiplier of either kind."""


@dataclass(frozen=True, slots=True)
class LayerSizes:
    """Inner sizes of a stack of blocks, one entry a block, first to last."""

    heads: tuple[int, ...]
    """Query heads."""
    hidden: tuple[int, ...]
    """Width of the MLP's hidden layer."""

    def __post_init__(self) -> None:
        if len(self.heads) != len(self.hidden):
            raise ValueError(f"heads and hidden need one entry a block, got {len(self.heads)} and {len(self.hidden)}")

    def __len__(self) -> int:
        return len(self.heads)

    def reversed(self) -> LayerSizes:
        """The same blocks in the opposite order."""
        return LayerSizes(self.heads[::-1], self.hidden[::-1])


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerScaling:
    """Multipliers of the first and the last block; those between lie on a line, rounded to two decimals."""

    alpha: tuple[float, float] = (0.5, 1.0)
    """All heads of a block together over the width of the stack, in the first and the last block."""
    beta: tuple[float, float] = (0.5, 4.0)
    """Hidden width of the MLP over the width of the stack, in the first and the last block."""
    divisor: int = 1
    """Hidden widths are multiples of this."""

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if not all(0 < multiplier <= HIGHEST for multiplier in value):  # NaN is refused too
                raise ValueError(f"{name} must lie in (0, {HIGHEST:g}], got {value}")
        if not 1 <= self.divisor <= 65_536:
            raise ValueError(f"divisor must lie in [1, 65536], got {self.divisor}")

    def sizes(self, width: int, depth: int, head_width: int, heads_per_group: int = 1) -> LayerSizes:
        """The lists of a stack of `depth` blocks of residual width `width`.

        Args:
            head_width: of one head, the same in all blocks.
            heads_per_group: query heads that share one key and value head; the heads of a block are a multiple of it.
        """
        heads = [
            make_divisible(multiplier * width, head_width * heads_per_group) // head_width
            for multiplier in _line(self.alpha, depth)
        ]
        hidden = [make_divisible(multiplier * width, self.divisor) for multiplier in _line(self.beta, depth)]
        return LayerSizes(tuple(heads), tuple(hidden))


def uniform(depth: int, heads: int, hidden: int) -> LayerSizes:
    """A stack whose blocks are all alike."""
    return LayerSizes((heads,) * depth, (hidden,) * depth)


def make_divisible(value: float, divisor: int) -> int:
    """The multiple of `divisor` nearest to `value`, halves up; at least one `divisor`, and not below 90% of `value`."""
    nearest = max(divisor, math.floor((value + divisor / 2) / divisor) * divisor)
    return nearest + divisor if nearest < 0.9 * value else nearest


def _line(ends: tuple[float, float], depth: int) -> list[float]:
    """`depth` values from the first end to the second, rounded to two decimals; one block takes the first."""
    first, last = ends
    step = (last - first) / max(1, depth - 1)  # in the order of numpy.linspace, so that halves round as they do there
    return [round(first + i * step, 2) for i in range(depth)]
