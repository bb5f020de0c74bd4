"""Layer-wise scaling: heads and MLP widths that grow (or shrink) from the first block of a stack to the last.

The residual width stays the same in all blocks; only the inner widths of a block change (Mehta et al. 2024, arXiv
2404.14619, section 2). A config gives the two ranges; the stack is built from the lists. Nothing here imports torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["LayerScaling", "LayerSizes", "StackConfig", "uniform"]

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


@dataclass(frozen=True, kw_only=True, slots=True)
class StackConfig:
    """Inner sizes of a stack's blocks where they are not all alike: by layer-wise scaling, or written out."""

    alpha: tuple[float, ...] = ()
    """All heads of a block together over the width, in the first and the last block, e.g. 0.5 1; empty = the same
    number of heads in all."""
    beta: tuple[float, ...] = ()
    """Hidden width of the MLP over the width, in the first and the last block, e.g. 0.5 4; empty = the same in all."""
    divisor: int = 1
    """Hidden widths by `beta` are multiples of this."""
    heads: tuple[int, ...] = ()
    """Heads of each block, in place of `alpha`; their width is that of a head without scaling."""
    hidden: tuple[int, ...] = ()
    """Hidden width of each block's MLP, in place of `beta`."""

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            if len(getattr(self, name)) not in (0, 2):
                raise ValueError(f"{name} takes two values, first and last block, got {getattr(self, name)}")
        for name, highest in (("heads", 4096), ("hidden", 1 << 22)):
            if not all(1 <= value <= highest for value in getattr(self, name)):
                raise ValueError(f"{name} must lie in [1, {highest}], got {getattr(self, name)}")
        for line, listed in (("alpha", "heads"), ("beta", "hidden")):
            if getattr(self, line) and getattr(self, listed):
                raise ValueError(f"{line} and {listed} say the same thing; give one of them")
        self._scaling()

    def _scaling(self) -> LayerScaling:
        ends = {name: getattr(self, name) for name in ("alpha", "beta") if getattr(self, name)}
        return LayerScaling(**ends, divisor=self.divisor)

    def check(self, depth: int) -> None:
        """Raises a ValueError unless lists have one entry for each of `depth` blocks."""
        for name in ("heads", "hidden"):
            if len(getattr(self, name)) not in (0, depth):
                raise ValueError(f"{name} needs one entry for each of {depth} blocks, got {len(getattr(self, name))}")

    def sizes(self, width: int, depth: int, heads: int, hidden: int) -> LayerSizes:
        """The lists of a stack whose blocks have `heads` and `hidden` where nothing else is said."""
        scaled, alike = self._scaling().sizes(width, depth, width // heads), uniform(depth, heads, hidden)
        return LayerSizes(
            self.heads or (scaled if self.alpha else alike).heads,
            self.hidden or (scaled if self.beta else alike).hidden,
        )

    def written_out(self, width: int, depth: int, heads: int, hidden: int) -> StackConfig:
        """The same sizes as lists, whatever becomes of the formula; a stack of like blocks stays as it is."""
        sizes = self.sizes(width, depth, heads, hidden)
        return StackConfig(
            heads=sizes.heads if self.alpha or self.heads else (),
            hidden=sizes.hidden if self.beta or self.hidden else (),
        )


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
