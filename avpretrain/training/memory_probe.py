"""The batch rule `memory` on a GPU: what a clip costs is measured once, and is part of the run's config from then on.

The peak of a training step is a line in the number of clips: weights, gradients and optimiser state, and so many bytes
for each clip. Two batch sizes give its slope at each pair of masking ratios.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from avpretrain.config import BatchConfig, TrainConfig
from avpretrain.configfile import from_dict, load_yaml
from avpretrain.errors import UserError
from avpretrain.files import read_text
from avpretrain.models.memory import activation_bytes
from avpretrain.schedules import ratio_pairs
from avpretrain.training.bare_step import BareStep, random_batch
from avpretrain.training.guards import memory_advice
from avpretrain.training.run import CONFIG_NAME

Peak = Callable[[int, float, float], int]
"""Peak bytes of a training step of so many clips at an audio and a video masking ratio."""
Rows = tuple[tuple[float, float, float], ...]
"""Audio masking ratio, video masking ratio, bytes of a clip."""


class DevicePeak:
    """Peak bytes of real steps on this GPU; a fresh model, which is dropped with this object."""

    def __init__(self, cfg: TrainConfig, device: torch.device) -> None:
        self.bare = BareStep(cfg, device)

    def __call__(self, clips: int, audio_ratio: float, video_ratio: float) -> int:
        device = self.bare.device
        batch = random_batch(self.bare.cfg.model.input, clips, device)
        with memory_advice(clips, 1, (audio_ratio, video_ratio)):
            self.bare.step(batch, audio_ratio, video_ratio)  # compiles, and makes the optimiser's state
            torch.cuda.reset_peak_memory_stats(device)
            self.bare.step(batch, audio_ratio, video_ratio)
        return torch.cuda.max_memory_allocated(device)


def measure(cfg: TrainConfig, ranks: int, peak: Peak) -> Rows:
    """Bytes of a clip at each pair of masking ratios of the run.

    Steps hold a quarter and half of the batch that the estimate of `models/memory.py` plans for a rank there: enough
    for activations to rule the peak, little enough to fit where the estimate is off.

    Raises:
        UserError: peaks do not rise with the batch, or a step did not fit.
    """
    pairs = ratio_pairs(cfg.schedule)
    end = activation_bytes(cfg.model, *pairs[-1])
    rows = []
    for audio, video in pairs:
        planned = cfg.schedule.batch.size / ranks * end / activation_bytes(cfg.model, audio, video)
        few = max(1, int(planned / 4))
        many = max(few + 1, int(planned / 2))
        slope = (peak(many, audio, video) - peak(few, audio, video)) / (many - few)
        if slope <= 0:
            raise UserError(
                f"peak memory does not rise from {few} to {many} clips at masking ratios {audio:g}/{video:g}, so "
                "schedule.batch.rule memory has nothing to hold on to; raise schedule.batch.size or use another rule"
            )
        rows.append((audio, video, float(slope)))
    return tuple(rows)


def with_measured_memory(cfg: TrainConfig, accelerator: Accelerator, peak: Peak | None = None) -> TrainConfig:
    """The config with `schedule.batch.bytes_per_clip` filled in, the same on every rank; every rank must call it.

    Rows come, in this order, from the config, from the run's folder (a run keeps the plan it began with, on whatever
    device it goes on), or from a measurement. All ranks measure, since the contrastive loss gathers; those of rank 0
    count. On a CPU there is none, and the estimate of `models/memory.py` takes its place.

    Args:
        peak: how to measure; none = on the GPU, if there is one.
    """
    batch = cfg.schedule.batch
    if batch.rule != "memory" or batch.bytes_per_clip:
        return cfg
    there: list[Rows | None] = [_in_folder(cfg) if accelerator.is_main_process else None]
    rows = broadcast_object_list(there)[0]
    if rows is None:
        if peak is None and accelerator.device.type == "cuda":
            takes = "minutes, since it compiles each" if cfg.run.compile else "seconds"
            accelerator.print(f"measuring the memory of steps, two batches a pair of masking ratios: takes {takes}")
            peak = DevicePeak(cfg, accelerator.device)
        measured = () if peak is None else measure(cfg, accelerator.num_processes, peak)
        rows = broadcast_object_list([measured])[0]
        del peak
        if accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
    return _with_rows(cfg, batch, rows)


def _in_folder(cfg: TrainConfig) -> Rows | None:
    """What the run that the folder holds began with; none where it holds none."""
    path = cfg.run_dir / CONFIG_NAME
    if not path.is_file():
        return None
    return from_dict(TrainConfig, load_yaml(read_text(path))).schedule.batch.bytes_per_clip


def _with_rows(cfg: TrainConfig, batch: BatchConfig, rows: Rows) -> TrainConfig:
    batch = dataclasses.replace(batch, bytes_per_clip=rows)
    return dataclasses.replace(cfg, schedule=dataclasses.replace(cfg.schedule, batch=batch))
