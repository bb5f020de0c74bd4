"""Hours that a planned training would take, from measured step times: clips of each phase over the speed there.

A measured step belongs to a phase when it has the phase's masking ratios and the analytic FLOPs of the phase's model at
the step's batch size, so that no variant borrows the speed of another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avpretrain.core.errors import UserError
from avpretrain.core.files import read_json
from avpretrain.methods.diffmavil.config import ModelConfig, TrainConfig
from avpretrain.methods.diffmavil.cost import clip_flops
from avpretrain.methods.diffmavil.run_cost import PhaseCost, RunCost

GPUS = (1, 64)
"""Numbers of GPUs that hours are given for; speed is taken to grow with their number, communication to cost nothing."""


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """One measured training step on one GPU."""

    batch_size: int
    audio_ratio: float
    video_ratio: float
    clips_per_second: float
    flops_per_clip: float

    def is_of(self, phase: PhaseCost, model: ModelConfig) -> bool:
        """Whether this is a step of that phase, at whatever batch size."""
        if not math.isclose(self.audio_ratio, phase.audio_ratio, abs_tol=1e-6):
            return False
        if not math.isclose(self.video_ratio, phase.video_ratio, abs_tol=1e-6):
            return False
        expected = clip_flops(model, phase.audio_ratio, phase.video_ratio, self.batch_size).training
        return math.isclose(self.flops_per_clip, expected, rel_tol=1e-9)


@dataclass(frozen=True, slots=True)
class Bench:
    """Measured steps of several variants on one machine."""

    hardware: Mapping[str, Any]
    variants: Mapping[str, Sequence[MeasuredStep]]


def read_bench(path: Path) -> Bench:
    """Reads what `avpretrain bench step` wrote.

    Raises:
        UserError: the file is missing or is something else.
    """
    record = read_json(path, "measured step times")
    try:
        variants = {
            name: [
                MeasuredStep(
                    int(row["batch_size"]),
                    float(row["audio_ratio"]),
                    float(row["video_ratio"]),
                    float(row["clips_per_second"]),
                    float(row["flops_per_clip"]),
                )
                for row in rows
                if row.get("clips_per_second")  # a phase that did not fit the memory has none
            ]
            for name, rows in record["variants"].items()
        }
        return Bench(record["hardware"], variants)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} holds no measured step times ({error}); write it with: avpretrain bench step"
        ) from None


@dataclass(frozen=True, slots=True)
class Prediction:
    """Hours of a whole training on one GPU."""

    measured: str
    """The measured variant whose steps were used."""
    hours: float


def predict(bench: Bench, cfg: TrainConfig, cost: RunCost) -> Prediction | None:
    """Hours of a planned training; none when a phase of it was not measured.

    Of several variants that fit, the one is taken whose batches are most nearly in proportion to the plan's.
    """
    candidates = [
        (_spread(steps, cost.phases), name, steps)
        for name, measured in bench.variants.items()
        if (steps := _steps(measured, cfg.model, cost.phases)) is not None
    ]
    if not candidates:
        return None
    _, name, steps = min(candidates, key=lambda item: item[0])
    seconds = sum(phase.clips / step.clips_per_second for phase, step in zip(cost.phases, steps, strict=True))
    return Prediction(name, seconds / 3600)


def _steps(
    measured: Sequence[MeasuredStep], model: ModelConfig, phases: Sequence[PhaseCost]
) -> list[MeasuredStep] | None:
    """The step of each phase; of several that fit, the fastest. None when a phase has none."""
    steps = []
    for phase in phases:
        fitting = [step for step in measured if step.is_of(phase, model)]
        if not fitting:
            return None
        steps.append(max(fitting, key=lambda step: step.clips_per_second))
    return steps


def _spread(steps: Sequence[MeasuredStep], phases: Sequence[PhaseCost]) -> float:
    """Largest over smallest ratio of measured to planned batch: 1 when they move together."""
    ratios = [step.batch_size / phase.batch_size for step, phase in zip(steps, phases, strict=True)]
    return max(ratios) / min(ratios)
