"""Which patches are hidden. Every strategy hides exactly the same number of patches in each clip.

B clips, L patches, K kept, N hidden; `mask` is 1 where a patch is removed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from avpretrain import draws
from avpretrain.models.patches import Grid
from avpretrain.schedules import kept


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


def make_mask(strategy: str, seed_B: Tensor, stream: str, grid: Grid, ratio: float) -> Mask:
    """Draws one view's mask for each clip from the clip's own seed.

    Args:
        strategy: a key of `STRATEGIES`.
        stream: name of the draw; each view and modality has its own.
        ratio: share of patches to hide, in (0, 1).
    """
    score_BL = STRATEGIES[strategy](seed_B, stream, grid)
    ids_BL = score_BL.argsort(dim=1, stable=True)
    keep = kept(score_BL.shape[1], ratio)
    return Mask(ids_keep_BK=ids_BL[:, :keep], ids_hidden_BN=ids_BL[:, keep:])


def _random(seed_B: Tensor, stream: str, grid: Grid) -> Tensor:
    """Each patch on its own (MAE)."""
    return draws.uniform(seed_B, stream, (torch.Size(grid).numel(),))


def _axis(seed_B: Tensor, stream: str, grid: Grid, axis: int) -> Tensor:
    """[B, *grid]: one draw for each index of `axis`, the same along the others."""
    shape = [grid[axis] if i == axis else 1 for i in range(len(grid))]
    return draws.uniform(seed_B, f"{stream}_axis{axis}", shape).expand(-1, *grid)


def _with_ties_broken(score_BG: Tensor, seed_B: Tensor, stream: str, grid: Grid) -> Tensor:
    """Whole groups are hidden in turn; the patches of the last one, only partly hidden, in random order."""
    return score_BG.flatten(1) + 1e-4 * _random(seed_B, stream, grid)


def _time(seed_B: Tensor, stream: str, grid: Grid) -> Tensor:
    return _with_ties_broken(_axis(seed_B, stream, grid, 0), seed_B, stream, grid)


def _frequency(seed_B: Tensor, stream: str, grid: Grid) -> Tensor:
    return _with_ties_broken(_axis(seed_B, stream, grid, 1), seed_B, stream, grid)


def _time_frequency(seed_B: Tensor, stream: str, grid: Grid) -> Tensor:
    """A patch goes when its column or its row does."""
    either_BG = torch.maximum(_axis(seed_B, stream, grid, 0), _axis(seed_B, stream, grid, 1))
    return _with_ties_broken(either_BG, seed_B, stream, grid)


def _tube(seed_B: Tensor, stream: str, grid: Grid) -> Tensor:
    """The same places at all times (VideoMAE)."""
    place_BG = draws.uniform(seed_B, f"{stream}_tube", (1, *grid[1:])).expand(-1, *grid)
    return _with_ties_broken(place_BG, seed_B, stream, grid)


STRATEGIES: dict[str, Callable[[Tensor, str, Grid], Tensor]] = {
    "random": _random,
    "time": _time,
    "frequency": _frequency,
    "time_frequency": _time_frequency,
    "tube": _tube,
}
"""Name to a function that scores patches, [B, L]; those with the highest scores are hidden."""
