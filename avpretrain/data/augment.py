"""Random changes to clips, each drawn from the clip's own seed; batched, on the device.

B clips, S waveform samples, T frames, H height, W width, N pixels of a crop's side, C colours; a box is (top, left,
height, width) in pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from avpretrain.core import draws

TRIES = 10
"""Boxes drawn for each clip; the first that fits its frame is taken."""
CPU_CHUNK, GPU_CHUNK = 1, 32
"""Clips that are cropped at a time: what they need fits a processor's caches, or a gigabyte of a GPU."""


def gains(seed_B: Tensor, decibels: float) -> Tensor:
    """float32 [B]: factors of amplitude, uniform in decibels from -`decibels` to +`decibels`."""
    return 10 ** ((draws.uniform(seed_B, "gain") * 2 - 1) * decibels / 20)


def shifts(seed_B: Tensor, most: float) -> Tensor:
    """int64 [B]: samples to roll by, uniform from -`most` to +`most`."""
    return ((draws.uniform(seed_B, "time_shift") * 2 - 1) * most).round().long()


def roll(waveform_BS: Tensor, samples_B: Tensor, shift_B: Tensor) -> Tensor:
    """Each clip's audio moved to the right by its shift; what leaves at the end comes back at the start."""
    place_S = torch.arange(waveform_BS.shape[1], device=waveform_BS.device)
    source_BS = (place_S - shift_B[:, None]) % samples_B[:, None].clamp(min=1)
    return torch.where(place_S < samples_B[:, None], waveform_BS.gather(1, source_BS), waveform_BS)


def flips(seed_B: Tensor, probability: float) -> Tensor:
    """bool [B]: which clips to mirror."""
    return draws.uniform(seed_B, "flip") < probability


def central_squares(size_B2: Tensor) -> Tensor:
    """float32 [B, 4]: the largest square in the middle of each frame."""
    side_B2 = size_B2.amin(dim=1, keepdim=True).expand_as(size_B2)
    return torch.cat([(size_B2 - side_B2) / 2, side_B2], dim=1).float()


def random_boxes(seed_B: Tensor, size_B2: Tensor, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """float32 [B, 4]: boxes of random area and aspect ratio, as torchvision's RandomResizedCrop draws them.

    Area is uniform in `scale` (a share of the frame), the logarithm of width / height in that of `ratio`. Where no try
    fits, the largest central box whose aspect ratio lies in `ratio`.
    """
    area_BN, shape_BN, top_BN, left_BN = draws.uniform(seed_B, "crop", (4, TRIES)).unbind(dim=1)
    high_B1, wide_B1 = size_B2.float().clamp(min=1).split(1, dim=1)
    area_BN = high_B1 * wide_B1 * (scale[0] + (scale[1] - scale[0]) * area_BN)
    low, top = math.log(ratio[0]), math.log(ratio[1])
    ratio_BN = torch.exp(low + (top - low) * shape_BN)
    h_BN, w_BN = (area_BN / ratio_BN).sqrt(), (area_BN * ratio_BN).sqrt()
    boxes_BN4 = torch.stack([(high_B1 - h_BN) * top_BN, (wide_B1 - w_BN) * left_BN, h_BN, w_BN], dim=2)
    fits_BN = (h_BN <= high_B1) & (w_BN <= wide_B1)
    h_B1 = torch.minimum(high_B1, wide_B1 / ratio[0])
    w_B1 = torch.minimum(wide_B1, high_B1 * ratio[1])
    fallback_B4 = torch.cat([(high_B1 - h_B1) / 2, (wide_B1 - w_B1) / 2, h_B1, w_B1], dim=1)
    first_B = fits_BN.int().argmax(dim=1)
    chosen_B4 = boxes_BN4[torch.arange(len(boxes_BN4), device=boxes_BN4.device), first_B]
    return torch.where(fits_BN.any(dim=1, keepdim=True), chosen_B4, fallback_B4)


def crop(frames_BTHWC: Tensor, size_B2: Tensor, boxes_B4: Tensor, flip_B: Tensor, size: int) -> Tensor:
    """float32 [B, T, size, size, C] in [0, 255]: each clip's box, resized bilinearly, the same in all of its frames.

    Only pixels inside the clip's own frame are read, so a clip's result does not depend on the padding that its
    neighbours in the batch cause.
    """
    chunk = CPU_CHUNK if frames_BTHWC.device.type == "cpu" else GPU_CHUNK
    spans = [slice(start, start + chunk) for start in range(0, len(frames_BTHWC), chunk)]
    return torch.cat([_crop(frames_BTHWC[s], size_B2[s], boxes_B4[s], flip_B[s], size) for s in spans])


def _crop(frames_BTHWC: Tensor, size_B2: Tensor, boxes_B4: Tensor, flip_B: Tensor, size: int) -> Tensor:
    b, t, h, w, c = frames_BTHWC.shape
    y0_BN, y1_BN, y_BN = _taps(boxes_B4[:, 0], boxes_B4[:, 2], size_B2[:, 0], size)
    x_taps = _taps(boxes_B4[:, 1], boxes_B4[:, 3], size_B2[:, 1], size)
    x0_BN, x1_BN, x_BN = (torch.where(flip_B[:, None], tap.flip(1), tap) for tap in x_taps)
    first_BT1 = (torch.arange(b * t, device=frames_BTHWC.device) * h).view(b, t, 1)
    lines = frames_BTHWC.reshape(b * t * h, w * c)

    def rows(y_BN: Tensor) -> Tensor:
        return lines.index_select(0, (first_BT1 + y_BN[:, None]).flatten()).view(b, t, size, w, c).float()

    def columns(x_BN: Tensor) -> Tensor:
        return rows_BTNWC.gather(3, x_BN[:, None, None, :, None].expand(b, t, size, size, c))

    rows_BTNWC = torch.lerp(rows(y0_BN), rows(y1_BN), y_BN[:, None, :, None, None])
    return torch.lerp(columns(x0_BN), columns(x1_BN), x_BN[:, None, None, :, None])


def _taps(start_B: Tensor, extent_B: Tensor, limit_B: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two pixels around each of `size` evenly spaced points along one axis, and the weight of the second."""
    step_N = torch.arange(size, device=start_B.device, dtype=torch.float32) + 0.5
    last_B1 = (limit_B[:, None] - 1).clamp(min=0)
    place_BN = start_B[:, None] + extent_B[:, None] * step_N / size - 0.5
    place_BN = torch.minimum(place_BN.clamp(min=0), last_B1.float())
    first_BN = place_BN.floor().long()
    return first_BN, torch.minimum(first_BN + 1, last_B1), place_BN - first_BN
