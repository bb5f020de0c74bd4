"""The batch rule `memory` on a GPU: what a clip costs is measured once, and is part of the run's config from then on.

The peak of a training step is a line in the number of clips: weights, gradients and optimiser state, and so many bytes
for each clip. Two batch sizes give its slope in each phase.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from avpretrain.config.schedules import Phase
from avpretrain.config.train import BatchConfig
from avpretrain.core.errors import UserError
from avpretrain.training.bare_step import BareStep
from avpretrain.training.guards import memory_advice
from avpretrain.training.method import Method
from avpretrain.training.run import CONFIG_NAME, run_config

Peak = Callable[[int, Phase], int]
"""Peak bytes of a training step of so many samples in a phase."""
Rows = tuple[tuple[float, ...], ...]
"""The numbers of a phase, then bytes of a sample there."""


class DevicePeak:
    """Peak bytes of real steps on this GPU; a fresh model, which is dropped with this object."""

    def __init__(self, method: Method, device: torch.device) -> None:
        self.bare = BareStep(method, device)

    def __call__(self, clips: int, phase: Phase) -> int:
        device = self.bare.device
        batch = self.bare.method.example(phase, clips, device)
        with memory_advice(clips, 1, phase):
            self.bare.step(batch, phase)  # compiles, and makes the optimiser's state
            torch.cuda.reset_peak_memory_stats(device)
            self.bare.step(batch, phase)
        return torch.cuda.max_memory_allocated(device)


def measure(method: Method, ranks: int, peak: Peak) -> Rows:
    """Bytes of a sample in each phase of the run.

    Steps hold a quarter and half of the batch that the method's estimate plans for a rank there: enough for activations
    to rule the peak, little enough to fit where the estimate is off.

    Raises:
        UserError: peaks do not rise with the batch, or a step did not fit.
    """
    phases, estimate = method.phases(), method.cost("memory")
    rows = []
    for phase in phases:
        planned = method.cfg.schedule.batch.size / ranks * estimate(phases[-1]) / estimate(phase)
        few = max(1, int(planned / 4))
        many = max(few + 1, int(planned / 2))
        slope = (peak(many, phase) - peak(few, phase)) / (many - few)
        if slope <= 0:
            where = f" with {phase}" if str(phase) else ""
            raise UserError(
                f"peak memory does not rise from {few} to {many} clips{where}, so schedule.batch.rule memory has "
                "nothing to hold on to; raise schedule.batch.size or use another rule"
            )
        rows.append((*phase.numbers().values(), float(slope)))
    return tuple(rows)


def measured_memory(method: Method, accelerator: Accelerator, peak: Peak | None = None) -> BatchConfig:
    """`schedule.batch` with `bytes_per_clip` filled in, the same on every rank; every rank must call it.

    Rows come, in this order, from the config, from the run's folder (a run keeps the plan it began with, on whatever
    device it goes on), or from a measurement. All ranks measure, since a loss may gather; those of rank 0 count. On a
    CPU there is none, and the method's estimate takes its place.

    Args:
        peak: how to measure; none = on the GPU, if there is one.
    """
    cfg, batch = method.cfg, method.cfg.schedule.batch
    if batch.rule != "memory" or batch.bytes_per_clip:
        return batch
    there: list[Rows | None] = [_in_folder(method) if accelerator.is_main_process else None]
    rows = broadcast_object_list(there)[0]
    if rows is None:
        if peak is None and accelerator.device.type == "cuda":
            takes = "minutes, since it compiles each" if cfg.run.compile else "seconds"
            accelerator.print(f"measuring the memory of steps, two batches a phase: takes {takes}")
            peak = DevicePeak(method, accelerator.device)
        measured = () if peak is None else measure(method, accelerator.num_processes, peak)
        rows = broadcast_object_list([measured])[0]
        del peak
        if accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
    return dataclasses.replace(batch, bytes_per_clip=rows)


def _in_folder(method: Method) -> Rows | None:
    """What the run that the folder holds began with; none where it holds none."""
    if not (method.cfg.run_dir / CONFIG_NAME).is_file():
        return None
    return run_config(method.cfg.run_dir, type(method.cfg)).schedule.batch.bytes_per_clip
