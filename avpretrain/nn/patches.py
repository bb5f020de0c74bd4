"""Clips to patches and back, and the fixed positions of patches.

B clips, F spectrogram frames, M mel bins, T video frames, C colours, H height, W width, L patches, P values a patch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from avpretrain.config.model import Side
from avpretrain.nn.inputs import require_spectrogram, require_video

__all__ = [
    "PATCHES",
    "AudioPatches",
    "Grid",
    "Patches",
    "VideoPatches",
    "patchify_audio",
    "patchify_video",
    "positions",
    "resize_positions",
    "unpatchify_audio",
    "unpatchify_video",
]

Grid = tuple[int, ...]
"""Patches along each axis: (time, frequency) or (time, height, width)."""


def patchify_audio(audio_BFM: Tensor, patch: tuple[int, int]) -> Tensor:
    """[B, L, P]: patches in row-major order of (time, frequency); values within one likewise."""
    return rearrange(audio_BFM, "b (t p) (f q) -> b (t f) (p q)", p=patch[0], q=patch[1])


def unpatchify_audio(patches_BLP: Tensor, grid: Grid, patch: tuple[int, int]) -> Tensor:
    """The inverse of `patchify_audio`: [B, F, M]."""
    return rearrange(patches_BLP, "b (t f) (p q) -> b (t p) (f q)", t=grid[0], p=patch[0])


def patchify_video(video_BTCHW: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """[B, L, P]: tubelets in row-major order of (time, height, width); values as (time, height, width, colour)."""
    u, p, q = patch
    return rearrange(video_BTCHW, "b (t u) c (h p) (w q) -> b (t h w) (u p q c)", u=u, p=p, q=q)


def unpatchify_video(patches_BLP: Tensor, grid: Grid, patch: tuple[int, int, int]) -> Tensor:
    """The inverse of `patchify_video`: [B, T, C, H, W]."""
    (t, h, w), (u, p, q) = grid, patch
    return rearrange(patches_BLP, "b (t h w) (u p q c) -> b (t u) c (h p) (w q)", t=t, h=h, w=w, u=u, p=p, q=q)


@dataclass(frozen=True)
class Patches(ABC):
    """How the clips of one modality are cut into patches, and put together again."""

    size: tuple[int, ...]
    """Of a patch, along each axis of the grid."""
    grid: Grid
    """Of the clips that a model is trained on."""

    @property
    def values(self) -> int:
        """P, values in one patch."""
        return math.prod(self.size)

    @abstractmethod
    def require(self, x: Tensor) -> None:
        """Raises a ValueError unless `x` are clips that an encoder can take."""

    @abstractmethod
    def grid_of(self, x: Tensor) -> Grid:
        """The grid of clips of another size."""

    @abstractmethod
    def split(self, x: Tensor) -> Tensor:
        """[B, L, P] of clips whose sizes are multiples of the patch."""

    @abstractmethod
    def join(self, patches_BLP: Tensor) -> Tensor:
        """The inverse of `split`, on the trained grid."""


@dataclass(frozen=True)
class AudioPatches(Patches):
    """Of spectrograms [B, F, M]; the grid is (time, frequency)."""

    def require(self, x: Tensor) -> None:
        require_spectrogram(x, self.size[0], self.grid[1] * self.size[1])

    def grid_of(self, x: Tensor) -> Grid:
        return x.shape[1] // self.size[0], x.shape[2] // self.size[1]

    def split(self, x: Tensor) -> Tensor:
        return patchify_audio(x, (self.size[0], self.size[1]))

    def join(self, patches_BLP: Tensor) -> Tensor:
        return unpatchify_audio(patches_BLP, self.grid, (self.size[0], self.size[1]))


@dataclass(frozen=True)
class VideoPatches(Patches):
    """Of videos [B, T, C, H, W]; the grid is (time, height, width)."""

    @property
    def values(self) -> int:
        """P, values in one patch, of three colours."""
        return 3 * math.prod(self.size)

    def require(self, x: Tensor) -> None:
        require_video(x, self.size)

    def grid_of(self, x: Tensor) -> Grid:
        (frames, _, height, width), (t, h, w) = x.shape[1:], self.size
        return frames // t, height // h, width // w

    def split(self, x: Tensor) -> Tensor:
        t, h, w = self.size
        return patchify_video(x, (t, h, w))

    def join(self, patches_BLP: Tensor) -> Tensor:
        t, h, w = self.size
        return unpatchify_video(patches_BLP, self.grid, (t, h, w))


PATCHES: dict[Side, type[Patches]] = {"audio": AudioPatches, "video": VideoPatches}
"""How each modality is cut."""


def _sincos(coordinates: Tensor, width: int) -> Tensor:
    """[len, width]: sines, then cosines, of coordinates over geometric wavelengths up to 10,000 (MAE)."""
    omega = 10_000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = coordinates.double()[:, None] * omega
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _coordinates(size: int, trained: int, is_time: bool) -> Tensor:
    """Positions along one axis: 0, 1, 2, ... at the trained size.

    At other sizes patch centres are scaled into the trained range. Time keeps its step while it fits, since a patch
    lasts as long as before, and is scaled only when longer than trained.
    """
    steps = torch.arange(size, dtype=torch.float64)
    if size == trained or (is_time and size < trained):
        return steps
    return (steps + 0.5) * (trained / size) - 0.5


def positions(grid: Grid, width: int, trained: Grid) -> Tensor:
    """Fixed sin-cos positions of a grid's patches, float32 [L, width]; do not write into it.

    Two axes follow MAE's 2-D formula (first half of the width: last axis, second half: first axis). Three axes give a
    quarter of the width to time and three eighths each to width and height; MAViL's split is not known.

    Args:
        trained: the grid the model was trained on; other grids are interpolated into its range.
    """
    if torch.get_default_device().type == "meta":  # only shapes are wanted, and the cache must not see them
        return torch.empty(math.prod(grid), width)
    return _positions(grid, width, trained)


@lru_cache(maxsize=64)
def _positions(grid: Grid, width: int, trained: Grid) -> Tensor:
    return _table([_coordinates(g, t, i == 0) for i, (g, t) in enumerate(zip(grid, trained, strict=True))], width)


def _table(axes: list[Tensor], width: int) -> Tensor:
    """[L, width] of the patches whose coordinates along each axis are given."""
    mesh = [m.flatten() for m in torch.meshgrid(*axes, indexing="ij")]
    if len(axes) == 2:
        parts = [_sincos(mesh[1], width // 2), _sincos(mesh[0], width // 2)]
    else:
        parts = [_sincos(mesh[0], width // 4), _sincos(mesh[2], 3 * width // 8), _sincos(mesh[1], 3 * width // 8)]
    return torch.cat(parts, dim=1).float()


def resize_positions(table_LD: Tensor, trained: Grid, grid: Grid) -> Tensor:
    """A learned table [L, D] of the `trained` grid, brought to another (in the geometry of `positions`).

    It is interpolated, except that a shorter clip takes the first steps of time as they are.
    """
    if grid == trained:
        return table_LD
    table_1DG = table_LD.float().T.reshape(1, -1, *trained)[:, :, : grid[0]]
    mode = "bicubic" if len(grid) == 2 else "trilinear"
    return F.interpolate(table_1DG, size=grid, mode=mode, align_corners=False).flatten(2)[0].T


def positions_of_steps(steps_S: Tensor, width: int, trained: Grid) -> Tensor:
    """`positions` of clips with the trained space and any time, from tensors alone, so that a graph can be exported.

    Args:
        steps_S: 0, 1, 2, ... S - 1, of any number type; its length is that of the clip in patches.
    """
    space = [torch.arange(size, dtype=torch.float64) for size in trained[1:]]
    return _table([_trained_time(steps_S, trained[0]), *space], width)


def resize_positions_of_steps(table_LD: Tensor, steps_S: Tensor, trained: Grid) -> Tensor:
    """`resize_positions` of clips with the trained space and any time; see `positions_of_steps`."""
    time_S = _trained_time(steps_S, trained[0])
    if len(trained) == 3:  # trilinear takes what lies before the first patch for the first
        time_S = time_S.clamp(min=0)
    left_S, table_TGD = time_S.floor(), table_LD.reshape(trained[0], -1, table_LD.shape[1])
    parts = []
    for tap in (-1, 0, 1, 2) if len(trained) == 2 else (0, 1):
        distance_S = (time_S - left_S - tap).abs()
        weight_S = _cubic(distance_S) if len(trained) == 2 else 1 - distance_S
        place_S = (left_S + tap).clamp(0, trained[0] - 1).long()
        parts.append(weight_S.to(table_LD.dtype)[:, None, None] * table_TGD[place_S])
    return torch.stack(parts).sum(dim=0).flatten(0, 1)


def _trained_time(steps_S: Tensor, trained: int) -> Tensor:
    """`_coordinates` of time without a branch: a scale of 1 leaves whole numbers as they are."""
    steps_S = steps_S.double()
    scale = (trained / (steps_S.max() + 1)).clamp(max=1)
    return (steps_S + 0.5) * scale - 0.5


def _cubic(distance: Tensor) -> Tensor:
    """Weight of a tap at a distance of 0 to 2 in torch's bicubic interpolation (Keys 1981, a = -0.75)."""
    near = (1.25 * distance - 2.25) * distance**2 + 1
    far = -0.75 * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance <= 1, near, far)
