"""Which patches are hidden. Every strategy hides exactly the same number of patches in each clip.

B clips, L patches, K kept, N hidden; `mask` is 1 where a patch is removed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from avpretrain.config.schedules import kept
from avpretrain.core import draws
from avpretrain.nn.patches import Grid

__all__ = ["STRATEGIES", "Mask", "gather_patches", "make_mask", "random_part"]


@dataclass(frozen=True)
class Mask:
    """One masked view of a batch."""

    ids_keep_BK: Tensor
    """Indices of the visible patches."""
    ids_hidden_BN: Tensor
    """Indices of the hidden patches."""

    @property
    def ids_restore_BL(self) -> Tensor:
        """Where each patch of the grid stands in [kept, hidden] (MAE)."""
        return torch.cat([self.ids_keep_BK, self.ids_hidden_BN], dim=1).argsort(dim=1)

    @property
    def mask_BL(self) -> Tensor:
        """float32, 1 = removed."""
        length = self.ids_keep_BK.shape[1] + self.ids_hidden_BN.shape[1]
        ones_BL = torch.ones(len(self.ids_keep_BK), length, device=self.ids_keep_BK.device)
        return ones_BL.scatter(1, self.ids_keep_BK, 0.0)


def gather_patches(x_BLD: Tensor, ids_BK: Tensor) -> Tensor:
    """[B, K, D]: the rows of each clip that `ids_BK` names."""
    return x_BLD.gather(1, ids_BK[:, :, None].expand(-1, -1, x_BLD.shape[2]))


def random_part(ids_hidden_BN: Tensor, ratio: float, seed_B: Tensor, stream: str) -> Tensor:
    """A random part of the hidden patches, the same number in each clip (CrossMAE, section 3.3)."""
    if ratio == 1:
        return ids_hidden_BN
    count = max(1, round(ids_hidden_BN.shape[1] * ratio))
    order_BN = draws.permutation(seed_B, stream, ids_hidden_BN.shape[1])
    return ids_hidden_BN.gather(1, order_BN[:, :count])


def make_mask(strategy: str, seed_B: Tensor, stream: str, grid: Grid, ratio: float) -> Mask:
    """Draws one view's mask for each clip from the clip's own seed.

    Args:
        strategy: a key of `STRATEGIES`.
        stream: name of the draw; each view and modality has its own.
        ratio: share of patches to hide, in (0, 1).
    """
    # Two sorts: a random order first, which the stable second one keeps among patches of one group (a column, a tube).
    random_BL = draws.permutation(seed_B, stream, math.prod(grid))
    group_BL = STRATEGIES[strategy](seed_B, stream, grid)
    ids_BL = random_BL
    if group_BL is not None:
        ids_BL = random_BL.gather(1, group_BL.gather(1, random_BL).argsort(dim=1, stable=True))
    keep = kept(ids_BL.shape[1], ratio)
    return Mask(ids_keep_BK=ids_BL[:, :keep], ids_hidden_BN=ids_BL[:, keep:])


def _axis(seed_B: Tensor, stream: str, grid: Grid, axis: int) -> Tensor:
    """[B, *grid]: one draw for each index of `axis`, the same along the others."""
    shape = [grid[axis] if i == axis else 1 for i in range(len(grid))]
    return draws.uniform(seed_B, f"{stream}_axis{axis}", shape).expand(-1, *grid)


def _random(seed_B: Tensor, stream: str, grid: Grid) -> None:
    """Each patch on its own (MAE)."""


def _time(seed_B: Tensor, stream: str, grid: Grid) -> Tensor:
    """All frequencies of a time together."""
    return _axis(seed_B, stream, grid, 0).flatten(1)


def _frequency(seed_B: Tensor, stream: str, grid: Grid) -> Tensor:
    """All times of a frequency together."""
    return _axis(seed_B, stream, grid, 1).flatten(1)


def _time_frequency(seed_B: Tensor, stream: str, grid: Grid) -> Tensor:
    """A patch goes when its time or its frequency does."""
    return torch.maximum(_axis(seed_B, stream, grid, 0), _axis(seed_B, stream, grid, 1)).flatten(1)


def _tube(seed_B: Tensor, stream: str, grid: Grid) -> Tensor:
    """The same places at all times (VideoMAE)."""
    return draws.uniform(seed_B, f"{stream}_tube", (1, *grid[1:])).expand(-1, *grid).flatten(1)


STRATEGIES: dict[str, Callable[[Tensor, str, Grid], Tensor | None]] = {
    "random": _random,
    "time": _time,
    "frequency": _frequency,
    "time_frequency": _time_frequency,
    "tube": _tube,
}
"""Name to a function that scores patches, [B, L], or nothing where each stands alone. Patches of equal score form a
group; groups are hidden whole, highest score first, and of the last one as many patches, at random, as the ratio asks.
"""
