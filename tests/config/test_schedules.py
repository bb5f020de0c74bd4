"""Schedules are pure functions of progress, and the plan of a run follows from them alone."""

from __future__ import annotations

import itertools
from functools import partial

import pytest

from avpretrain.config.schedules import Phase, Step, batch_size_for, lr_at, plan, total_samples
from avpretrain.config.train import BatchConfig, OptimConfig
from avpretrain.core.errors import UsageError
from avpretrain.methods.diffmavil.config import RatioConfig, ScheduleConfig
from avpretrain.methods.diffmavil.curriculum import MaskRatios, mask_ratio_at, phase_at

FALLING = RatioConfig(kind="linear", start=0.9, end=0.8)


def visible(phase: Phase) -> float:
    assert isinstance(phase, MaskRatios)
    return 512 * (1 - phase.audio) + 784 * (1 - phase.video)


def batch_size_at(progress: float, cfg: ScheduleConfig) -> int:
    return batch_size_for(phase_at(progress, cfg), phase_at(1.0, cfg), cfg.batch, visible)


def steps_of(cfg: ScheduleConfig, total: int) -> list[Step]:
    return list(plan(cfg, OptimConfig(), total, partial(phase_at, cfg=cfg), visible))


def adaptive(size: int = 64) -> ScheduleConfig:
    batch = BatchConfig(size=size, rule="visible_tokens")
    return ScheduleConfig(audio_mask_ratio=FALLING, video_mask_ratio=FALLING, batch=batch)


def test_linear_ratio_takes_its_levels_in_equal_shares() -> None:
    ratios = [mask_ratio_at(i / 1000, FALLING) for i in range(1000)]
    assert [(k, len(list(g))) for k, g in itertools.groupby(ratios)] == [
        (0.9, 200), (0.875, 200), (0.85, 200), (0.825, 200), (0.8, 200),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["linear", "cosine", "step"])
@pytest.mark.parametrize(("start", "end"), [(0.9, 0.8), (0.6, 0.9)])
def test_moving_ratios_run_from_start_to_end_without_turning(kind: str, start: float, end: float) -> None:
    cfg = RatioConfig(kind=kind, start=start, end=end, levels=7)
    ratios = [mask_ratio_at(i / 500, cfg) for i in range(500)]
    assert (ratios[0], ratios[-1]) == (start, end)
    assert sorted(ratios, reverse=start > end) == ratios


def test_constant_ratio_ignores_its_end() -> None:
    assert mask_ratio_at(0.99, RatioConfig(start=0.75, end=0.1)) == 0.75


def test_batch_keeps_the_number_of_visible_tokens() -> None:
    cfg = adaptive()
    sizes = [batch_size_at(p, cfg) for p in (0.0, 0.3, 0.5, 0.7, 0.9)]
    assert sizes == [128, 96, 80, 72, 64]
    assert all(size % 8 == 0 for size in sizes)


def test_batch_respects_its_cap_and_its_multiple() -> None:
    batch = BatchConfig(size=64, rule="visible_tokens", multiple=32, max_size=100)
    cfg = ScheduleConfig(audio_mask_ratio=FALLING, video_mask_ratio=FALLING, batch=batch)
    assert batch_size_at(0.0, cfg) == 96


def test_learning_rate_warms_up_and_falls_to_its_floor() -> None:
    cfg = OptimConfig(lr=1.0, warmup=0.1, min_lr_ratio=0.25)
    assert lr_at(0.05, cfg) == pytest.approx(0.5)
    assert lr_at(0.1, cfg) == pytest.approx(1.0)
    assert lr_at(0.55, cfg) == pytest.approx(0.625)
    assert lr_at(1.0, cfg) == pytest.approx(0.25)


@pytest.mark.parametrize(("scale", "factor"), [("none", 1.0), ("sqrt", 2.0), ("linear", 4.0)])
def test_learning_rate_follows_the_batch(scale: str, factor: float) -> None:
    assert lr_at(0.5, OptimConfig(lr_scale=scale), 4.0) == pytest.approx(lr_at(0.5, OptimConfig()) * factor)


def test_plan_tiles_the_run_and_depends_on_samples_alone() -> None:
    steps = steps_of(adaptive(), 10_000)
    assert [s.seen for s in steps] == [0, *itertools.accumulate(s.batch_size for s in steps[:-1])]
    assert steps[-1].seen < 10_000 <= steps[-1].seen + steps[-1].batch_size
    assert {s.phase for s in steps} == {MaskRatios(r, r) for r in (0.9, 0.875, 0.85, 0.825, 0.8)}
    assert [s.index for s in steps] == list(range(len(steps)))
    assert all(s.lr > 0 for s in steps)


def test_a_run_shorter_than_its_first_batch_is_refused() -> None:
    with pytest.raises(UsageError, match="first batch holds 128"):
        steps_of(adaptive(), 100)


def test_total_samples() -> None:
    assert total_samples(ScheduleConfig(epochs=2.5), 10) == 25
    assert total_samples(ScheduleConfig(epochs=2.5, samples=7), 10) == 7
