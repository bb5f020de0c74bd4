"""The cost of whole trainings without training: every variant under every accounting, against MAViL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from avpretrain.config.changes import with_changes
from avpretrain.methods.diffmavil.config import TrainConfig
from avpretrain.methods.diffmavil.run_cost import RunCost, mavil_of, run_cost, samples_of
from avpretrain.report.hours import GPUS, Bench, Prediction, predict

DIFFUSED = {"model.audio.decoder.input": "diffused", "model.video.decoder.input": "diffused"}
VIDEO_CROSS = {"model.video.decoder.kind": "cross"}
BOTH_CROSS = {**VIDEO_CROSS, "model.audio.decoder.kind": "cross"}
HALF = {"model.audio.decoder.decode_ratio": 0.5, "model.video.decoder.decode_ratio": 0.5}
ADAPTIVE = {"schedule.batch.rule": "visible_tokens"}


def _curriculum(start: float, end: float) -> dict[str, Any]:
    sides = [f"schedule.{side}_mask_ratio" for side in ("audio", "video")]
    return {f"{side}.{k}": v for side in sides for k, v in (("kind", "linear"), ("start", start), ("end", end))}


VARIANTS: dict[str, Mapping[str, Any]] = {
    "mavil": {},
    "+ diffused patches": DIFFUSED,
    "+ video decoder cross": DIFFUSED | VIDEO_CROSS,
    "+ both decoders cross": DIFFUSED | BOTH_CROSS,
    "masking 0.9 to 0.8 alone": _curriculum(0.9, 0.8),
    "masking 0.8 to 0.9 alone": _curriculum(0.8, 0.9),
    "adaptive batch alone": ADAPTIVE,
    "diffmavil": DIFFUSED | VIDEO_CROSS | _curriculum(0.9, 0.8) | ADAPTIVE,
    "diffmavil, 0.95 to 0.8": DIFFUSED | VIDEO_CROSS | _curriculum(0.95, 0.8) | ADAPTIVE,
    "diffmavil, both cross": DIFFUSED | BOTH_CROSS | _curriculum(0.9, 0.8) | ADAPTIVE,
    "diffmavil, both cross, 0.95 to 0.8": DIFFUSED | BOTH_CROSS | _curriculum(0.95, 0.8) | ADAPTIVE,
    "diffmavil, both cross, half decoded": DIFFUSED | BOTH_CROSS | HALF | _curriculum(0.9, 0.8) | ADAPTIVE,
    "fast: as before, 0.95 to 0.85": DIFFUSED | BOTH_CROSS | HALF | _curriculum(0.95, 0.85) | ADAPTIVE,
    "rising: both cross, half decoded, 0.85 to 0.95": BOTH_CROSS | HALF | _curriculum(0.85, 0.95),
}
"""Name to the config keys that differ from MAViL's."""

ACCOUNTINGS: dict[str, Mapping[str, Any]] = {
    "encode 1, decode 1": {"model.views": 1, "model.decode_views": 1, "model.loss.intra": 0.0},
    "encode 2, decode 1": {"model.views": 2, "model.decode_views": 1},
    "encode 2, decode 2": {"model.views": 2, "model.decode_views": 2},
}
"""Masked views of a clip. How many the papers encode and decode is not known: each share is given for every reading."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One variant under one accounting."""

    variant: str
    accounting: str
    cost: RunCost
    saving: float
    """Share of MAViL's FLOPs under the same accounting."""
    time: Prediction | None = None
    """None where its steps were not measured."""
    time_saving: float | None = None
    """Share of MAViL's hours under the same accounting."""


def variants_of(base: TrainConfig) -> dict[str, TrainConfig]:
    """Every variant at the size and with the views of `base`, by name."""
    mavil = mavil_of(base)
    return {name: with_changes(mavil, keys) for name, keys in VARIANTS.items()}


def ledger(base: TrainConfig, clips: int, bench: Bench | None = None) -> list[Entry]:
    """Every variant at the size of `base` under every accounting.

    Args:
        clips: in the training split; `base` says how many epochs or samples.
        bench: measured step times, for hours.

    Raises:
        UsageError: the run is shorter than its first batch.
    """
    entries = []
    for accounting, views in ACCOUNTINGS.items():
        configs = variants_of(with_changes(base, views))
        costs = {name: run_cost(cfg, samples_of(base, clips)) for name, cfg in configs.items()}
        times = {name: predict(bench, configs[name], cost) if bench else None for name, cost in costs.items()}
        entries += [
            Entry(name, accounting, cost, cost.saving(costs["mavil"]), times[name], _saved(times[name], times["mavil"]))
            for name, cost in costs.items()
        ]
    return entries


def _saved(time: Prediction | None, baseline: Prediction | None) -> float | None:
    return None if time is None or baseline is None else 1 - time.hours / baseline.hours


def as_json(entries: list[Entry]) -> list[dict[str, Any]]:
    """Entries in plain JSON types."""
    return [
        {
            "variant": entry.variant,
            "accounting": entry.accounting,
            "flops_per_clip": entry.cost.per_clip,
            "flops_total": entry.cost.total,
            "clips": entry.cost.clips,
            "steps": entry.cost.steps,
            "saving": entry.saving,
            "components": {name: part.training for name, part in entry.cost.components.items()},
            **_hours(entry),
        }
        for entry in entries
    ]


def _hours(entry: Entry) -> dict[str, Any]:
    """Hours on each number of GPUs, where they were measured."""
    if entry.time is None:
        return {}
    hours = {str(gpus): entry.time.hours / gpus for gpus in GPUS}
    return {"measured_as": entry.time.measured, "hours": hours, "time_saving": entry.time_saving}
