"""Which auxiliary layer feeds which base layer, and which layers a pruned model keeps. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Sequence

from avpretrain.methods.openelm.config import LanguageModelShape

SHARES = (0.25, 0.5, 0.75)
"""Of a model's layers that a pruned copy keeps."""


def canonical_map(auxiliary: int, base: int) -> tuple[int, ...]:
    """For each of `base` layers, which of `auxiliary` layers feeds it: consecutive ones share, the first most.

    With q, r = divmod(base, auxiliary), each of the first r auxiliary layers feeds q + 1 base layers, the others q.

    Raises:
        ValueError: there are more auxiliary layers than base layers, or none.
    """
    if not 1 <= auxiliary <= base:
        raise ValueError(f"an auxiliary model of {auxiliary} layers can't feed {base}; it takes 1 to {base}")
    each, more = divmod(base, auxiliary)
    return tuple(layer for layer in range(auxiliary) for _ in range(each + (layer < more)))


def kept_layers(depth: int, share: float) -> tuple[int, ...]:
    """The layers that a pruned copy keeps: every fourth, every second, or all but every fourth.

    Raises:
        ValueError: `share` is none of `SHARES`.
    """
    if share == 0.25:
        return tuple(range(0, depth, 4))
    if share == 0.5:
        return tuple(range(0, depth, 2))
    if share == 0.75:
        return tuple(i for i in range(depth) if i % 4 != 3)
    raise ValueError(f"a pruned copy keeps 0.25, 0.5 or 0.75 of the layers, got {share:g}")


def pruned_map(depth: int, kept: Sequence[int]) -> tuple[int, ...]:
    """For each of `depth` layers, the place among `kept` of the last one that is not after it.

    Args:
        kept: rising, from 0 on.
    """
    return tuple(bisect_right(kept, layer) - 1 for layer in range(depth))


def pruned_shape(shape: LanguageModelShape, kept: Sequence[int]) -> LanguageModelShape:
    """The shape of a copy that keeps these layers."""
    heads, hidden = (tuple(sizes[i] for i in kept) for sizes in (shape.heads, shape.hidden))
    return dataclasses.replace(shape, heads=heads, hidden=hidden)
