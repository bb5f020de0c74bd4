"""Phase, batch size and learning rate as pure functions of progress, and the plan of steps that they make together.

Progress is the share of samples seen, in [0, 1): batches change size, so steps do not measure it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from avpretrain.config.train import BatchConfig, LengthConfig, OptimConfig
from avpretrain.core.errors import UsageError

__all__ = ["Phase", "Step", "batch_size_for", "lr_at", "plan", "total_samples"]


@dataclass(frozen=True, slots=True)
class Phase:
    """What a method holds fixed over a stretch of training. Equal phases have the same shapes, so that the steps of a
    phase can share a compilation and a CUDA graph.

    A method whose shapes move on the way subclasses it with fields of its own, numbers all.
    """

    def numbers(self) -> dict[str, float]:
        """What is logged of it, by the name of the metric."""
        return {}

    def __str__(self) -> str:
        """For a line of progress, as 'mask 0.90/0.80'; empty = nothing to say."""
        return ""


Cost = Callable[[Phase], float]
"""Cost of one sample (tokens, FLOPs or bytes) in a phase."""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step of the plan."""

    index: int
    """Steps before this one."""
    seen: int
    """Samples seen before this one."""
    batch_size: int
    """Samples over all ranks."""
    lr: float
    phase: Phase = Phase()


def kept(patches: int, ratio: float) -> int:
    """Patches of `patches` that stay visible at a masking ratio: at least 1 and at most all but one."""
    return min(max(round(patches * (1 - ratio)), 1), patches - 1)


def batch_size_for(phase: Phase, last: Phase, cfg: BatchConfig, cost: Cost) -> int:
    """Global batch size in a phase: B = B0 * cost0 / cost, where B0 and cost0 hold in the `last` one."""
    if cfg.rule == "constant":
        return cfg.size
    return _round_down(cfg.size * cost(last) / cost(phase), cfg)


def _round_down(size: float, cfg: BatchConfig) -> int:
    return max(cfg.multiple, min(int(size + 1e-6), cfg.max_size) // cfg.multiple * cfg.multiple)


def cost_by_rule(batch: BatchConfig, estimate: Callable[[str], Cost]) -> Cost:
    """What an adaptive batch holds constant.

    Args:
        estimate: the cost by the name of a rule; measured bytes, where the config has them, count before it.
    """
    if batch.rule == "constant":
        return lambda phase: 1.0
    if batch.rule == "memory" and batch.bytes_per_clip:
        return _measured({tuple(numbers): cost for *numbers, cost in batch.bytes_per_clip})
    return functools.lru_cache(estimate(batch.rule))


def _measured(rows: Mapping[tuple[float, ...], float]) -> Cost:
    def look_up(phase: Phase) -> float:
        numbers = tuple(phase.numbers().values())
        if numbers not in rows:
            raise UsageError(
                f"schedule.batch.bytes_per_clip has no row for {phase}; leave it out, and its rows are measured"
            )
        return rows[numbers]

    return look_up


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


def total_samples(cfg: LengthConfig, clips: int) -> int:
    """Clips seen in a whole run over a training split of `clips`."""
    return cfg.samples if cfg.samples is not None else max(1, round(cfg.epochs * clips))


def plan(
    cfg: LengthConfig, optim: OptimConfig, total: int, phase_at: Callable[[float], Phase], cost: Cost
) -> Iterator[Step]:
    """The steps of a run, in order, each from the number of samples seen before it alone.

    Batches are never cut: the last step may pass `total` by less than a batch.

    Args:
        phase_at: the phase at a progress in [0, 1]; at 1 it is the last one.

    Raises:
        UsageError: the first batch is larger than the whole run.
    """
    last = phase_at(1.0)
    first = batch_size_for(phase_at(0.0), last, cfg.batch, cost)
    if first > total:
        raise UsageError(
            f"the run is {total} clips long, but its first batch holds {first}; "
            f"raise schedule.{'epochs' if cfg.samples is None else 'samples'} or lower schedule.batch.size"
        )
    index = seen = 0
    while seen < total:
        phase = phase_at(seen / total)
        size = batch_size_for(phase, last, cfg.batch, cost)
        lr = lr_at((seen + min(seen + size, total)) / 2 / total, optim, size / cfg.batch.size)
        yield Step(index, seen, size, lr, phase)
        index, seen = index + 1, seen + size
