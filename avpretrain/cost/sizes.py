"""How many tokens each part of the model sees of one clip, from the config alone; nothing here imports torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from avpretrain.config.model import ModelConfig
from avpretrain.config.schedules import kept


@dataclass(frozen=True, slots=True)
class Side:
    """One modality's sizes at one masking ratio."""

    patches: int
    visible: int
    decoded: int
    """Hidden patches that the decoder predicts."""
    patch_values: int
    predicted_values: int
    """Values the decoder predicts of each hidden patch."""
    noised_values: int
    """Values of each diffused patch."""
    prefix: int
    """1 with a class token, else 0."""

    @property
    def tokens(self) -> int:
        """What the encoder sees."""
        return self.visible + self.prefix


def _decoded(hidden: int, ratio: float) -> int:
    return hidden if ratio == 1 else max(1, round(hidden * ratio))


def side(cfg: ModelConfig, name: str, ratio: float) -> Side:
    """Sizes of `name` ("audio" or "video") when a share of `ratio` of its patches is hidden."""
    if name == "audio":
        grid: tuple[int, ...] = cfg.audio_grid
        values, decoder = cfg.audio.patch[0] * cfg.audio.patch[1], cfg.audio.decoder
    else:
        grid = cfg.video_grid
        values, decoder = 3 * cfg.video.patch[0] * cfg.video.patch[1] * cfg.video.patch[2], cfg.video.decoder
    patches = math.prod(grid)
    visible = kept(patches, ratio)
    predicted = values if cfg.objective == "patches" else cfg.width
    return Side(
        patches=patches,
        visible=visible,
        decoded=_decoded(patches - visible, decoder.decode_ratio),
        patch_values=values,
        predicted_values=predicted,
        noised_values=values if cfg.diffusion.noise_on == "pixel" else predicted,
        prefix=int(cfg.cls_token),
    )


def visible_tokens(cfg: ModelConfig, audio_ratio: float, video_ratio: float) -> float:
    """Tokens that the encoders see of one view of one clip."""
    return float(side(cfg, "audio", audio_ratio).tokens + side(cfg, "video", video_ratio).tokens)
