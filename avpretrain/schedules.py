"""Masking ratio, batch size and learning rate as pure functions of progress, and the plan of steps they make together.

Progress is the share of clips seen, in [0, 1): batches change size, so steps do not measure it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from avpretrain.config import BatchConfig, OptimConfig, RatioConfig, ScheduleConfig
from avpretrain.errors import UsageError

Cost = Callable[[float, float], float]
"""Cost of one clip (tokens, FLOPs or bytes) at an audio and a video masking ratio."""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step of the plan."""

    index: int
    """Steps before this one."""
    seen: int
    """Clips seen before this one."""
    batch_size: int
    """Clips over all ranks."""
    audio_ratio: float
    video_ratio: float
    lr: float


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


def ratio_pairs(cfg: ScheduleConfig) -> list[tuple[float, float]]:
    """Audio and video masking ratios that a run passes through, in order, each pair once; the last is the end's."""
    turns = {0.0, 1.0}
    for ratio in (cfg.audio_mask_ratio, cfg.video_mask_ratio):
        levels = {"constant": 1, "step": 2}.get(ratio.kind, ratio.levels)
        turns |= {level / levels for level in range(levels)}
    middles = [(low + high) / 2 for low, high in pairwise(sorted(turns))]
    pairs = [(mask_ratio_at(p, cfg.audio_mask_ratio), mask_ratio_at(p, cfg.video_mask_ratio)) for p in middles]
    return list(dict.fromkeys(pairs))


def kept(patches: int, ratio: float) -> int:
    """Patches of `patches` that stay visible at a masking ratio: at least 1 and at most all but one."""
    return min(max(round(patches * (1 - ratio)), 1), patches - 1)


def batch_size_at(progress: float, cfg: ScheduleConfig, cost: Cost) -> int:
    """Global batch size: B = B0 * cost0 / cost, where B0 and cost0 hold at the end of training."""
    ratios = mask_ratio_at(progress, cfg.audio_mask_ratio), mask_ratio_at(progress, cfg.video_mask_ratio)
    return batch_size_for(ratios, cfg, cost)


def batch_size_for(ratios: tuple[float, float], cfg: ScheduleConfig, cost: Cost) -> int:
    """`batch_size_at` where the audio and video masking ratios are these."""
    batch = cfg.batch
    if batch.rule == "constant":
        return batch.size
    end = cost(mask_ratio_at(1.0, cfg.audio_mask_ratio), mask_ratio_at(1.0, cfg.video_mask_ratio))
    return _round_down(batch.size * end / cost(*ratios), batch)


def _round_down(size: float, cfg: BatchConfig) -> int:
    return max(cfg.multiple, min(int(size + 1e-6), cfg.max_size) // cfg.multiple * cfg.multiple)


def lr_at(progress: float, cfg: OptimConfig, batch_share: float = 1.0) -> float:
    """Linear warm-up, then half a cosine down to `lr * min_lr_ratio`.

    Args:
        batch_share: this step's batch size over the configured one, which `lr_scale` follows.
    """
    scale = {"none": 1.0, "sqrt": math.sqrt(batch_share), "linear": batch_share}[cfg.lr_scale]
    if progress < cfg.warmup:
        return cfg.lr * scale * progress / cfg.warmup
    done = min(1.0, (progress - cfg.warmup) / (1 - cfg.warmup))
    return cfg.lr * scale * (cfg.min_lr_ratio + (1 - cfg.min_lr_ratio) * (1 + math.cos(math.pi * done)) / 2)


def total_samples(cfg: ScheduleConfig, clips: int) -> int:
    """Clips seen in a whole run over a training split of `clips`."""
    return cfg.samples if cfg.samples is not None else max(1, round(cfg.epochs * clips))


def plan(cfg: ScheduleConfig, optim: OptimConfig, total: int, cost: Cost) -> Iterator[Step]:
    """The steps of a run, in order, each from the number of clips seen before it alone.

    Batches are never cut: the last step may pass `total` by less than a batch.

    Raises:
        UsageError: the first batch is larger than the whole run.
    """
    first = batch_size_at(0.0, cfg, cost)
    if first > total:
        raise UsageError(
            f"the run is {total} clips long, but its first batch holds {first}; "
            f"raise schedule.{'epochs' if cfg.samples is None else 'samples'} or lower schedule.batch.size"
        )
    index = seen = 0
    while seen < total:
        progress = seen / total
        size = batch_size_at(progress, cfg, cost)
        yield Step(
            index=index,
            seen=seen,
            batch_size=size,
            audio_ratio=mask_ratio_at(progress, cfg.audio_mask_ratio),
            video_ratio=mask_ratio_at(progress, cfg.video_mask_ratio),
            lr=lr_at((seen + min(seen + size, total)) / 2 / total, optim, size / cfg.batch.size),
        )
        index, seen = index + 1, seen + size
