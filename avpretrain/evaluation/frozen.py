"""Features of whole clips of any length from a trained encoder, and the plain features they have to beat.

B clips, F spectrogram frames, M mel bins, T video frames, S steps (patches along time), G places (patches of one step),
P values a patch, D width, E layers.

A clip is encoded on the patches that hold it and no others, and a last patch that it fills in part holds its last frame
for the rest: padding would dilute short clips. A clip longer than what the model was trained on is cut into windows.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from avpretrain.config.model import InputConfig
from avpretrain.data.whole import clip_steps
from avpretrain.evaluation.settings import Modality, Pooling, Side
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.nn.encoder import Encoder


@dataclass(frozen=True)
class ClipBatch:
    """Clips as a model sees them, and how much of each row is clip rather than padding."""

    audio_BFM: Tensor
    video_BTCHW: Tensor
    audio_frames_B: Tensor
    """int64: spectrogram frames of sound; 0 = none."""
    video_frames_B: Tensor
    """int64: frames before the end of the clip; 0 = no picture."""

    def of(self, side: Side) -> tuple[Tensor, Tensor]:
        """Clips of one modality, and the frames of each that are clip."""
        sides: dict[Side, tuple[Tensor, Tensor]] = {
            "audio": (self.audio_BFM, self.audio_frames_B),
            "video": (self.video_BTCHW, self.video_frames_B),
        }
        return sides[side]


Embedder = Callable[[ClipBatch], Tensor]
"""[B, width] features; rows without the modality it reads are 0."""


def sides_of(modality: Modality) -> tuple[Side, ...]:
    """The encoders that a modality needs."""
    return ("audio", "video") if modality == "both" else (modality,)


def windows(steps: int, longest: int) -> list[tuple[int, int]]:
    """The fewest windows of at most `longest` steps, as equal as possible, that cover `steps`."""
    count = math.ceil(steps / longest)
    edges = [round(i * steps / count) for i in range(count + 1)]
    return list(itertools.pairwise(edges))


def input_for(model: DiffMAViL, seconds: float, modality: Modality = "both") -> InputConfig:
    """The model's input, long enough for clips of `seconds`: whole patches of sound, whole tubelets of video.

    The modality that is not asked for shrinks to nothing, so that no work goes into it.
    """
    cfg = model.cfg
    patch, tubelet = cfg.audio.patch[0], cfg.video.patch[0]
    audio_frames = max(1, math.ceil(seconds / 0.01 / patch)) * patch
    video_frames = max(1, math.ceil(seconds * cfg.input.video_fps / tubelet)) * tubelet
    if modality == "audio":
        return dataclasses.replace(cfg.input, audio_frames=audio_frames, video_frames=1, video_size=1)
    if modality == "video":
        return dataclasses.replace(cfg.input, audio_frames=1, video_frames=video_frames)
    return dataclasses.replace(cfg.input, audio_frames=audio_frames, video_frames=video_frames)


def encode_steps(model: DiffMAViL, side: Side, x: Tensor, steps: int, layers: int = 1) -> tuple[Tensor, Tensor | None]:
    """Tokens of the first `steps` of every row, window by window.

    Args:
        x: [B, F, M] or [B, T, C, H, W], at least `steps` long.

    Returns:
        tokens [B, E, S, G, D] of the last `layers`, normalised; class tokens [B, E, D], averaged over windows.

    Raises:
        ValueError: `x` has another number of mel bins or another size than the model was trained on.
    """
    encoder = model.tower(side).encoder
    encoder.patches.require(x)
    (longest, *space), patch = encoder.grid, encoder.patches.size[0]
    if tuple(space) != encoder.patches.grid_of(x)[1:]:  # of audio, `require` has seen to it
        size = model.cfg.input.video_size
        raise ValueError(f"the model takes videos of {size} x {size} pixels, got {x.shape[3]} x {x.shape[4]}")
    places = math.prod(space)
    tokens, heads = [], []
    for start, stop in windows(steps, longest):
        part_BELD = _last_layers(encoder, x[:, start * patch : stop * patch], layers)
        heads.append(part_BELD[:, :, : encoder.prefix] * (stop - start) / steps)
        tokens.append(rearrange(part_BELD[:, :, encoder.prefix :], "b e (s g) d -> b e s g d", g=places))
    cls_BED = torch.stack(heads).sum(dim=0)[:, :, 0] if encoder.prefix else None
    return torch.cat(tokens, dim=2), cls_BED


def _last_layers(encoder: Encoder, x: Tensor, layers: int) -> Tensor:
    """[B, E, prefix + L, D], each layer through the encoder's final norm."""
    levels: dict[int, Tensor] = {}
    last_BLD = encoder.encode(x, levels if layers > 1 else None)
    earlier = sorted(levels)[len(levels) - layers : -1]
    return torch.stack([*(encoder.norm(levels[level]) for level in earlier), last_BLD], dim=1)


class FrozenEncoder(nn.Module):
    """An `Embedder`: pooled tokens of one modality, or of both one after the other."""

    def __init__(self, model: DiffMAViL, modality: Modality, pooling: Pooling) -> None:
        super().__init__()
        self.model, self.pooling = model.eval(), pooling
        self.sides = sides_of(modality)

    @torch.no_grad()
    def forward(self, batch: ClipBatch) -> Tensor:
        return torch.cat([self._side(side, batch) for side in self.sides], dim=1)

    def _side(self, side: Side, batch: ClipBatch) -> Tensor:
        x, frames_B = batch.of(side)
        patch = self.model.tower(side).patches.size[0]
        rows_by_steps: dict[int, list[int]] = {}
        for row, frames in enumerate(frames_B.tolist()):
            if frames:
                rows_by_steps.setdefault(clip_steps(frames, patch), []).append(row)
        out_BD = x.new_zeros(len(x), self._width(side))
        for steps, rows in rows_by_steps.items():
            part = clip_part(x, frames_B, rows, steps * patch)
            out_BD[rows] = self._pool(side, *encode_steps(self.model, side, part, steps, self.pooling.layers))
        return out_BD

    def _width(self, side: Side) -> int:
        bands = self.model.audio_encoder.grid[1] if side == "audio" else 1
        times = {"mean_cls": 2, "bands": bands}.get(self.pooling.kind, 1)
        return self.model.cfg.width * self.pooling.layers * times

    def _pool(self, side: Side, tokens_BESGD: Tensor, cls_BED: Tensor | None) -> Tensor:
        if self.pooling.kind == "bands" and side == "audio":
            return tokens_BESGD.mean(dim=2).flatten(1)
        parts = [] if self.pooling.kind == "cls" else [tokens_BESGD.mean(dim=(2, 3))]
        if self.pooling.kind in ("cls", "mean_cls") and cls_BED is not None:
            parts.append(cls_BED)
        return torch.cat(parts, dim=-1).flatten(1)


def clip_part(x: Tensor, frames_B: Tensor, rows: list[int], frames: int) -> Tensor:
    """The first `frames` of some rows of [B, F, ...]; what lies after a clip's end repeats its last frame."""
    index_B = torch.tensor(rows, device=x.device)
    place_F = torch.arange(frames, device=x.device)
    place_BF = torch.minimum(place_F, frames_B[index_B].to(x.device)[:, None] - 1)
    return x[index_B[:, None], place_BF]


def mean_log_mel(batch: ClipBatch) -> Tensor:
    """[B, M]: the mean spectrum, as a baseline without any learning."""
    return _mean_over_frames(batch.audio_BFM, batch.audio_frames_B)


def mean_frame(batch: ClipBatch) -> Tensor:
    """[B, 192]: the mean frame, shrunk to 8 x 8 pixels, as a baseline without any learning."""
    small_BTCHW = F.adaptive_avg_pool2d(batch.video_BTCHW.flatten(0, 1), 8).unflatten(0, batch.video_BTCHW.shape[:2])
    return _mean_over_frames(small_BTCHW.flatten(2), batch.video_frames_B)


def _mean_over_frames(x_BFX: Tensor, frames_B: Tensor) -> Tensor:
    inside_BF1 = (torch.arange(x_BFX.shape[1], device=x_BFX.device) < frames_B[:, None])[:, :, None]
    return (x_BFX * inside_BF1).sum(dim=1) / frames_B[:, None].clamp(min=1)


PLAIN_FEATURES: dict[Side, Embedder] = {"audio": mean_log_mel, "video": mean_frame}
"""The baseline without an encoder for each side; of both sides, one after the other."""
PLAIN_NAMES: dict[Modality, str] = {"audio": "mean_log_mel", "video": "mean_frame", "both": "mean_input"}
"""What it is called in results."""
