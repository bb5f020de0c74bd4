"""What is counted between two log lines, and the line of metrics that is made of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from avpretrain.config.schedules import Step
from avpretrain.training.checkpoint import Progress
from avpretrain.training.metrics import LossMeter


@dataclass(frozen=True)
class Reading:
    """Means and sums over the steps of a window and over all ranks."""

    means: dict[str, float]
    """Losses and the gradient's norm."""
    failed: int
    """Clips that could not be decoded."""
    waited: float
    """Seconds that a rank waited for clips, mean over ranks."""
    seconds: float
    clips: int


@dataclass
class Window:
    """One rank's counts since the last log line; losses stay on the device until they are read."""

    reason: str = "on another rank"
    """Why the latest clip that failed did so."""
    clips: int = 0
    failed: int = 0
    waited: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    meter: LossMeter = field(default_factory=LossMeter)

    def add(self, step: Step, lost: Sequence[str], losses: dict[str, Tensor], waited: float) -> None:
        """Counts a step, and why samples of it were lost; waits for nothing."""
        self.meter.add(losses)
        self.clips += step.batch_size
        self.failed += len(lost)
        self.reason = lost[-1] if lost else self.reason
        self.waited += waited

    def read(self, accelerator: Accelerator) -> Reading:
        """Reads the device once; every rank must call it."""
        names = self.meter.names
        counts = torch.tensor([self.failed, self.waited], dtype=torch.float64, device=accelerator.device)
        values = accelerator.reduce(torch.cat([self.meter.read().double(), counts]), reduction="mean").tolist()
        *means, failed, waited = values
        seconds = time.perf_counter() - self.started
        failed = round(failed * accelerator.num_processes)
        return Reading(dict(zip(names, means, strict=True)), failed, waited, seconds, self.clips)


@dataclass
class MeanLosses:
    """Mean losses over the samples since the last checkpoint."""

    sums: dict[str, float] = field(default_factory=dict)
    clips: int = 0

    def add(self, reading: Reading) -> None:
        for name, mean in reading.means.items():
            self.sums[name] = self.sums.get(name, 0.0) + mean * reading.clips
        self.clips += reading.clips

    def take(self) -> dict[str, float]:
        """The means, none where nothing was added; starts anew."""
        means = {name: total / self.clips for name, total in self.sums.items()} if self.clips else {}
        self.sums, self.clips = {}, 0
        return means


def epoch_line(progress: Progress, epoch: int) -> str:
    """A whole epoch in a line for the console."""
    p = progress
    return (
        f"epoch {epoch}: {p.seen} clips in {p.step} steps, {p.seconds / 60:.1f} min, "
        f"{p.flops / 1e15:.3g} PFLOP, {p.failed_clips} clips replaced"
    )


def after_step(progress: Progress, step: Step, flops_per_clip: float) -> Progress:
    """Where the run stands once `step` is taken."""
    return dataclasses.replace(
        progress,
        seen=step.seen + step.batch_size,
        step=step.index + 1,
        flops=progress.flops + flops_per_clip * step.batch_size,
    )


def metrics_line(reading: Reading, step: Step, progress: Progress, total: int, flops_per_clip: float) -> dict[str, Any]:
    """A line of metrics.jsonl.

    Args:
        progress: after `step` and with this window's seconds and failures.
        total: clips in the whole run.
    """
    return {
        "step": progress.step,
        "seen": progress.seen,
        "samples_total": total,
        **reading.means,
        **step.phase.numbers(),
        "batch_size": step.batch_size,
        "lr": step.lr,
        "clips_per_second": reading.clips / reading.seconds,
        "seconds": progress.seconds,
        "data_wait_share": reading.waited / reading.seconds,
        "failed_clips": progress.failed_clips,
        "flops_per_clip": flops_per_clip,
        "flops_total": progress.flops,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
    }
