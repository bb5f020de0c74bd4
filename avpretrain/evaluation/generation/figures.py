"""What inpainting did, to look at: spectrograms one under another, frames as strips.

F frames, M mel bins, T video frames, C colours, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avpretrain.core.files import atomic_path
from avpretrain.data.features import IMAGENET_MEAN, IMAGENET_STD
from avpretrain.measures.spectrograms import draw_spectrogram


def draw_spectrograms(
    rows: Mapping[str, Tensor], path: Path, title: str, sample_rate: int, frames: int | None = None
) -> None:
    """Writes [F, M] spectrograms as one picture, on the colour scale of the first; hidden places (NaN) stay grey.

    Args:
        frames: of the clip; what follows is padding and is hatched. None = all.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.45 * len(rows) + 0.4), dpi=120, layout="constrained")
    axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    first = next(iter(rows.values())).float()
    frames = len(first) if frames is None else frames
    low, high = (float(first[: max(1, frames)].quantile(q)) for q in (0.01, 0.995))
    for axis, (name, audio_FM) in zip(axes, rows.items(), strict=True):
        draw_spectrogram(axis, audio_FM.float().cpu().numpy(), frames, (low, high), sample_rate)
        axis.set_ylabel(f"{name}, Hz", fontsize=8)
    axes[-1].set_xlabel("seconds", fontsize=8)
    figure.suptitle(title, fontsize=9, parse_math=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def draw_strips(rows: Mapping[str, Tensor], path: Path, title: str) -> None:
    """Writes [T, C, H, W] clips as strips of frames, one under another; hidden places (NaN) are grey."""
    from matplotlib.figure import Figure

    strips = {name: strip(video_TCHW) for name, video_TCHW in rows.items()}
    tall, wide = next(iter(strips.values())).shape[:2]
    width = 10.0
    height = width * tall / wide + 0.06
    figure = Figure(figsize=(width + 0.5, height * len(rows) + 0.4), dpi=110, layout="constrained")
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axis, (name, image) in zip(axes, strips.items(), strict=True):
        axis.imshow(image, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_ylabel(name, fontsize=8)
    figure.suptitle(title, fontsize=9, parse_math=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def strip(video_TCHW: Tensor) -> NDArray[np.float32]:
    """[H, T W, 3] in [0, 1]: frames side by side, ImageNet's normalisation undone, NaN grey."""
    mean, std = (torch.tensor(v, device=video_TCHW.device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    rgb = (video_TCHW.float() * std + mean).clamp(0, 1).nan_to_num(0.75)
    return torch.cat(list(rgb), dim=-1).permute(1, 2, 0).cpu().numpy()
