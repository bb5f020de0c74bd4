"""`einops.rearrange` for code that travels without einops; its patterns with names and one level of brackets."""

from __future__ import annotations

import math
import re

from torch import Tensor


def rearrange(x: Tensor, pattern: str, **sizes: int) -> Tensor:
    """Splits, moves and joins axes as `einops.rearrange` does.

    Args:
        pattern: such as 'b l (n h) -> b n l h'; in each bracket at most one size is not given.
    """
    left, right = ([group.strip("()").split() for group in re.findall(r"\([^)]*\)|\S+", side)]
                   for side in pattern.split("->"))  # fmt: skip
    known = dict(sizes)
    for group, size in zip(left, x.shape, strict=True):
        missing = [name for name in group if name not in known]
        if missing:
            known[missing[0]] = size // math.prod(known[name] for name in group if name != missing[0])
    axes = [name for group in left for name in group]
    split = x.reshape([known[name] for name in axes])
    moved = split.permute([axes.index(name) for group in right for name in group])
    return moved.reshape([math.prod(known[name] for name in group) for group in right])
