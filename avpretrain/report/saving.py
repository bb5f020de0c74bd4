"""From one config to another in named steps, and what each step changes in the cost of a clip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from avpretrain.config.changes import flat, nested
from avpretrain.config.reader import from_dict, learnt_config, to_dict
from avpretrain.config.train import EngineConfig
from avpretrain.core.errors import UsageError
from avpretrain.methods.diffmavil.config import TrainConfig
from avpretrain.methods.diffmavil.run_cost import run_cost

CHANGES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("input and encoders", ("model.input.", "model.width", "model.heads", "model.mlp_ratio", "model.cls_token",
                            "model.audio.patch", "model.audio.depth", "model.audio.positions",
                            "model.video.patch", "model.video.depth", "model.video.positions")),
    ("fusion", ("model.fusion.",)),
    ("views", ("model.views", "model.decode_views", "model.loss.")),
    ("diffused patches", ("model.audio.decoder.input", "model.video.decoder.input", "model.diffusion.")),
    ("video decoder", ("model.video.decoder.kind",)),
    ("audio decoder", ("model.audio.decoder.kind", "model.audio.decoder.window")),
    ("share decoded", ("model.audio.decoder.decode_ratio", "model.video.decoder.decode_ratio")),
    ("decoder size", ("model.audio.decoder.", "model.video.decoder.")),
    ("masking", ("schedule.audio_mask_ratio.", "schedule.video_mask_ratio.", "model.audio.mask", "model.video.mask")),
    ("batch size", ("schedule.batch.",)),
    ("the rest", ("model.", "schedule.")),
)  # fmt: skip
"""Changes in the order in which they are made, with their config keys: exact, or all under one that ends in '.'."""


@dataclass(frozen=True, slots=True)
class Change:
    """One step on the way from a baseline to a config."""

    label: str
    before: float
    """FLOPs of training on one clip, mean over the run."""
    after: float


def split_saving(baseline: TrainConfig, target: TrainConfig, samples: int | None = None) -> list[Change]:
    """Turns `baseline` into `target` change by change, in the order of `CHANGES`, and costs each stop.

    What a change saves depends on those made before it, so a split is one of several; the sum is exact. A stop that is
    no valid config is merged into the next one.

    Args:
        samples: clips seen in the run; none = a nominal number.
    """
    now, goal = flat(to_dict(baseline)), flat(to_dict(target))
    cost, changes, pending = run_cost(baseline, samples).per_clip, [], []
    left = {key for key in now.keys() | goal.keys() if now.get(key) != goal.get(key)}
    for title, prefixes in CHANGES:
        keys = {key for key in left if any(key == p or (p.endswith(".") and key.startswith(p)) for p in prefixes)}
        if not keys:
            continue
        left -= keys
        pending.append(_label(title, keys, now, goal))
        for key in keys:
            now[key] = goal[key]
        try:
            after = run_cost(from_dict(TrainConfig, nested(now)), samples).per_clip
        except UsageError:
            continue
        changes.append(Change(" and ".join(pending), cost, after))
        cost, pending = after, []
    return changes


def _label(title: str, keys: set[str], now: Mapping[str, Any], goal: Mapping[str, Any]) -> str:
    """The change in a few words, with its values where all of its keys agree on them."""
    if title == "masking":
        sides = [f"schedule.{side}_mask_ratio" for side in ("audio", "video")]
        ways = {tuple(goal[f"{side}.{part}"] for part in ("kind", "start", "end")) for side in sides}
        (kind, start, end), *more = ways
        return title if more else f"{title} {start:g}" + ("" if kind == "constant" else f" to {end:g}")
    if title == "diffused patches":
        return title if any(goal[k] == "diffused" for k in keys) else "noise and timesteps"
    pairs = {(str(now.get(key)), str(goal.get(key))) for key in keys}
    if len(pairs) > 1:
        return title if title != "batch size" else f"batch size by {goal['schedule.batch.rule']}".replace("_", " ")
    ((before, after),) = pairs
    return f"{title}: {before} to {after}".replace("_", " ")


def config_differences(configs: Mapping[str, EngineConfig]) -> dict[str, dict[str, Any]]:
    """Dotted keys of what is learnt on which configs differ, each with every config's value."""
    every = {name: flat(learnt_config(cfg)) for name, cfg in configs.items()}
    keys = dict.fromkeys(key for values in every.values() for key in values)
    rows = {key: {name: values.get(key) for name, values in every.items()} for key in keys}
    return {k: row for k, row in rows.items() if len({str(v) for v in row.values()}) > 1}
