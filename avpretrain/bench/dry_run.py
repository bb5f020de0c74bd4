"""What a run will be, without training: its whole plan, and the hours it would take on this device."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from avpretrain.bench.step import StepBench, StepShape, median_seconds
from avpretrain.config.schedules import Step
from avpretrain.core.files import atomic_path
from avpretrain.core.provenance import environment
from avpretrain.methods.diffmavil.config import TrainConfig
from avpretrain.methods.diffmavil.cost import plan_of, visible_tokens
from avpretrain.methods.diffmavil.curriculum import MaskRatios
from avpretrain.methods.diffmavil.example import random_batch
from avpretrain.methods.diffmavil.run_cost import RunCost, run_cost

CPU_CLIPS, CPU_SECONDS = 2, 1.0
"""On a CPU, where a whole batch may take minutes: clips in the first timed step, seconds at which they grow no more."""
POINTS = 2000
"""Points of a curve in the plot."""


@dataclass(frozen=True, slots=True)
class Timing:
    """A timed training step."""

    clips: int
    """In the step: the batch of its phase, or as much of it as was timed."""
    seconds: float
    first_seconds: float
    """The first step's, with compilation where the config compiles."""


Timer = Callable[[StepShape], Timing]


class StepTimer:
    """Times real training steps on clips of noise, on one device.

    A GPU takes the batch of the phase, halved until it fits. A CPU takes two clips, and four times as many until a step
    takes a second: a base model is then timed on a small part of its batch, a tiny one on the whole.
    """

    def __init__(self, cfg: TrainConfig, device: torch.device) -> None:
        self.bench = StepBench(cfg, device)
        self.on_cpu = device.type == "cpu"
        self.limit = CPU_CLIPS if self.on_cpu else cfg.schedule.batch.max_size

    def __call__(self, phase: StepShape) -> Timing:
        """Seconds of a step of as many of the phase's clips as the device takes.

        Raises:
            torch.OutOfMemoryError: not even one clip fits.
        """
        while True:
            clips = min(self.limit, phase.batch_size)
            try:
                timing = self._time(StepShape(clips, phase.audio_ratio, phase.video_ratio))
            except torch.OutOfMemoryError:
                if clips == 1:
                    raise
                self.limit = clips // 2
                self.bench.bare.optimizer.zero_grad(set_to_none=True)
            else:
                if not self.on_cpu or clips == phase.batch_size or timing.seconds > CPU_SECONDS:
                    return timing
                self.limit = 4 * clips
            if not self.on_cpu:
                torch.cuda.empty_cache()

    def _time(self, phase: StepShape) -> Timing:
        batch = random_batch(self.bench.cfg.model.input, phase.batch_size, self.bench.device)
        first, *others = (median_seconds(lambda: self.bench.step(batch, phase), 0, 1) for _ in range(4))
        return Timing(phase.batch_size, statistics.median(others), first)


def dry_run(cfg: TrainConfig, total: int, timer: Timer | None) -> dict[str, Any]:
    """The plan of a run in plain JSON types.

    Args:
        total: clips seen in the whole run.
        timer: measures a step of a phase; none = no hours.

    Raises:
        UsageError: the run is shorter than its first batch.
    """
    cost = run_cost(cfg, total)
    shapes = dict.fromkeys(StepShape(p.batch_size, p.audio_ratio, p.video_ratio) for p in cost.phases)
    timings = {} if timer is None else {shape: timer(shape) for shape in shapes}
    rows = _rows(cfg, cost, timings)
    answer = {
        "config": cfg.name,
        "clips": cost.clips,
        "steps": cost.steps,
        "visible_tokens": sum(row["visible_tokens"] for row in rows),
        "flops": cost.total,
        "shapes": len(shapes),
        "phases": rows,
        **environment(),
    }
    if timings:
        answer["hours"] = sum(row["hours"] for row in rows)
        first = sum(timing.first_seconds - timing.seconds for timing in timings.values())
        answer["compile_seconds"] = first if cfg.run.compile else 0.0
    return answer


def _rows(cfg: TrainConfig, cost: RunCost, timings: dict[StepShape, Timing]) -> list[dict[str, Any]]:
    rows = []
    for phase in cost.phases:
        row: dict[str, Any] = {
            "audio_mask_ratio": phase.audio_ratio,
            "video_mask_ratio": phase.video_ratio,
            "batch_size": phase.batch_size,
            "steps": phase.steps,
            "clips": phase.clips,
            "visible_tokens": visible_tokens(cfg.model, phase.audio_ratio, phase.video_ratio)
            * cfg.model.views
            * phase.clips,
            "flops": phase.flops.training * phase.clips,
        }
        timing = timings.get(StepShape(phase.batch_size, phase.audio_ratio, phase.video_ratio))
        if timing is not None:
            row |= {"timed_clips": timing.clips, "timed_seconds": timing.seconds}
            row["hours"] = phase.clips * timing.seconds / timing.clips / 3600
        rows.append(row)
    return rows


# --- the plot --------------------------------------------------------------------------------------------------------


def draw_schedules(cfg: TrainConfig, total: int, path: Path) -> None:
    """Writes a PNG of masking ratios, batch size and learning rate against clips seen."""
    from matplotlib.figure import Figure

    steps = _thinned(list(plan_of(cfg, total)))
    phases = [cast(MaskRatios, step.phase) for step in steps]
    seen = [step.seen for step in steps] + [total]
    figure = Figure(figsize=(8, 7), dpi=110)
    ratios, sizes, rates = figure.subplots(3, 1, sharex=True)
    for name, values in (("audio", [phase.audio for phase in phases]), ("video", [phase.video for phase in phases])):
        ratios.step(seen, [*values, values[-1]], where="post", label=name, ls="-" if name == "audio" else "--")
    ratios.legend(frameon=False)
    sizes.step(seen, [s.batch_size for s in steps] + [steps[-1].batch_size], where="post", color="C2")
    rates.plot(seen[:-1], [s.lr for s in steps], color="C3")
    labels = ("share of patches hidden", "clips a batch", "learning rate")
    for axis, label in zip((ratios, sizes, rates), labels, strict=True):
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=0)
    ratios.set_ylim(0, 1)
    rates.set_xlabel("clips seen")
    figure.suptitle(f"{cfg.name}: {total:,} clips")
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _thinned(steps: list[Step]) -> list[Step]:
    """Few enough steps to draw: every n-th, and each at which the batch or a ratio changes."""
    every = -(-len(steps) // POINTS)
    shape = [(step.batch_size, step.phase) for step in steps]
    return [step for i, step in enumerate(steps) if i % every == 0 or shape[i] != shape[i - 1] or i == len(steps) - 1]
