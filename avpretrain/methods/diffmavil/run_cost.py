"""The analytic cost of a whole run: the plan of its schedule, phase by phase, and the baseline it is held against."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, cast

from avpretrain.config.model import DecoderConfig
from avpretrain.config.schedules import total_samples
from avpretrain.cost.flops import FlopCount, Flops
from avpretrain.methods.diffmavil.config import RatioConfig, TrainConfig
from avpretrain.methods.diffmavil.cost import COMPONENTS, clip_flops, plan_of
from avpretrain.methods.diffmavil.curriculum import MaskRatios

NOMINAL_STEPS = 4000
"""Steps of a run whose length is not known: enough for each phase to take its share."""


@dataclass(frozen=True, slots=True)
class PhaseCost:
    """Steps in a row that have the same masking ratios and batch size."""

    audio_ratio: float
    video_ratio: float
    batch_size: int
    steps: int
    flops: FlopCount
    """Of one clip."""

    @property
    def clips(self) -> int:
        return self.steps * self.batch_size


@dataclass(frozen=True, slots=True)
class RunCost:
    """What a run costs by the analytic count."""

    phases: tuple[PhaseCost, ...]

    @property
    def clips(self) -> int:
        return sum(phase.clips for phase in self.phases)

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def components(self) -> dict[str, Flops]:
        """Mean over the clips of the run, by component."""
        means = dict.fromkeys(COMPONENTS, Flops())
        for phase in self.phases:
            for name, part in phase.flops.components.items():
                means[name] += part * (phase.clips / self.clips)
        return means

    @property
    def per_clip(self) -> float:
        """FLOPs of training on one clip, mean over the run."""
        return sum(part.training for part in self.components.values())

    @property
    def total(self) -> float:
        return self.per_clip * self.clips

    def saving(self, baseline: RunCost) -> float:
        """Share of the baseline's FLOPs per clip that this run does without; negative where it costs more."""
        return 1 - self.per_clip / baseline.per_clip


def run_cost(cfg: TrainConfig, samples: int | None = None) -> RunCost:
    """Walks through the plan of a config.

    Args:
        samples: clips seen in the whole run; none = a nominal number, so that only the values per clip mean something.

    Raises:
        UsageError: the run is shorter than its first batch.
    """
    runs: list[tuple[tuple[float, float, int], int]] = []
    total = NOMINAL_STEPS * cfg.schedule.batch.size if samples is None else samples
    for step in plan_of(cfg, total):
        ratios = cast(MaskRatios, step.phase)
        key = (ratios.audio, ratios.video, step.batch_size)
        if runs and runs[-1][0] == key:
            runs[-1] = (key, runs[-1][1] + 1)
        else:
            runs.append((key, 1))
    return RunCost(tuple(PhaseCost(*key, steps, clip_flops(cfg.model, *key)) for key, steps in runs))


def samples_of(cfg: TrainConfig, clips: int | None) -> int | None:
    """Clips seen in the run of a config over a training split of `clips`; none where the config leaves it open."""
    if clips is None and cfg.schedule.samples is None:
        return None
    return total_samples(cfg.schedule, clips or 0)


def is_mavil(cfg: TrainConfig) -> bool:
    """Whether a config is MAViL at its size: nothing diffused, nothing that moves on the way."""
    plain = mavil_of(cfg)
    return (plain.model, plain.schedule) == (cfg.model, cfg.schedule)


def mavil_of(cfg: TrainConfig) -> TrainConfig:
    """MAViL at the size of `cfg`: mask tokens, joint decoders over all patches, constant masking ratios and batches.

    The ratios are those at the end of the schedule.
    """
    model, schedule = cfg.model, cfg.schedule

    def plain(decoder: DecoderConfig) -> DecoderConfig:
        return DecoderConfig(width=decoder.width, depth=decoder.depth, heads=decoder.heads)

    def constant(ratio: RatioConfig) -> RatioConfig:
        return RatioConfig(start=ratio.start if ratio.kind == "constant" else ratio.end)

    return dataclasses.replace(
        cfg,
        name="mavil",
        model=dataclasses.replace(
            model,
            audio=dataclasses.replace(model.audio, decoder=plain(model.audio.decoder)),
            video=dataclasses.replace(model.video, decoder=plain(model.video.decoder)),
        ),
        schedule=dataclasses.replace(
            schedule,
            audio_mask_ratio=constant(schedule.audio_mask_ratio),
            video_mask_ratio=constant(schedule.video_mask_ratio),
            batch=dataclasses.replace(schedule.batch, rule="constant"),
        ),
    )


def as_json(cost: RunCost, known_length: bool) -> dict[str, Any]:
    """A run's cost in plain JSON types.

    Args:
        known_length: whether the run's length is known, so that totals mean something.
    """
    phases = []
    for phase in cost.phases:
        row: dict[str, Any] = {"share": phase.clips / cost.clips}
        row |= {"audio_mask_ratio": phase.audio_ratio, "video_mask_ratio": phase.video_ratio}
        row |= {"batch_size": phase.batch_size, "forward": phase.flops.forward, "training": phase.flops.training}
        row |= {"clips": phase.clips, "steps": phase.steps} if known_length else {}
        phases.append(row)
    totals = {"clips": cost.clips, "steps": cost.steps, "total": cost.total} if known_length else {}
    components = {name: {"forward": part.forward, "training": part.training} for name, part in cost.components.items()}
    return {"per_clip": cost.per_clip, **totals, "components": components, "phases": phases}
