"""The curriculum of masking: shares of patches hidden, as functions of progress (DiffMAViL: from 0.9 down to 0.8)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from avpretrain.config.schedules import Phase
from avpretrain.methods.diffmavil.config import RatioConfig, ScheduleConfig


@dataclass(frozen=True, slots=True)
class MaskRatios(Phase):
    """Shares of the patches of each modality that are hidden, in (0, 1)."""

    audio: float
    video: float

    def numbers(self) -> dict[str, float]:
        return {"audio_mask_ratio": self.audio, "video_mask_ratio": self.video}

    def __str__(self) -> str:
        return f"mask {self.audio:.2f}/{self.video:.2f}"


def mask_ratio_at(progress: float, cfg: RatioConfig) -> float:
    """Masking ratio at `progress` in [0, 1); moving kinds take `levels` values, evenly from start to end."""
    if cfg.kind == "constant":
        return cfg.start
    level = min(int(progress * cfg.levels), cfg.levels - 1)
    share = level / (cfg.levels - 1)
    if cfg.kind == "cosine":
        share = (1 - math.cos(math.pi * share)) / 2
    if cfg.kind == "step":
        share = float(progress >= 0.5)
    return round(cfg.start + (cfg.end - cfg.start) * share, 6)


def phase_at(progress: float, cfg: ScheduleConfig) -> MaskRatios:
    """The masking ratios at `progress` in [0, 1]."""
    return MaskRatios(mask_ratio_at(progress, cfg.audio_mask_ratio), mask_ratio_at(progress, cfg.video_mask_ratio))


def phases_of(cfg: ScheduleConfig) -> list[MaskRatios]:
    """Masking ratios that a run passes through, in order, each pair once; the last is the end's."""
    turns = {0.0, 1.0}
    for ratio in (cfg.audio_mask_ratio, cfg.video_mask_ratio):
        levels = {"constant": 1, "step": 2}.get(ratio.kind, ratio.levels)
        turns |= {level / levels for level in range(levels)}
    middles = [(low + high) / 2 for low, high in pairwise(sorted(turns))]
    return list(dict.fromkeys(phase_at(progress, cfg) for progress in middles))
