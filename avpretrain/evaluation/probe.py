"""Probes: how well a simple classifier reads a label off frozen features, beside features that were not learnt."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

from avpretrain.data.clips import ClipSet
from avpretrain.errors import UserError
from avpretrain.evaluation import intervals
from avpretrain.evaluation.extract import Reading, extract, longest_clip
from avpretrain.evaluation.frozen import PLAIN_FEATURES, Embedder, FrozenEncoder, Modality, Pooling, input_for
from avpretrain.evaluation.labels import Parts, Task, cross_validation_parts, official_parts, read_task
from avpretrain.evaluation.predictions import Predictions, beside
from avpretrain.evaluation.results import origin
from avpretrain.evaluation.selection import METHODS, across_parts, evaluate, majority
from avpretrain.modelconfig import ModelConfig
from avpretrain.models.diffmavil import DiffMAViL
from avpretrain.training.checkpoint import load_model

ENCODER, RANDOM = "encoder", "random_encoder"


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """What to probe, and how."""

    label: str
    modality: Modality = "audio"
    classifier: Literal["linear", "knn"] = "linear"
    pool: Pooling = field(default_factory=Pooling)
    folds: str = ""
    """Label that names official folds; empty = the data set's splits."""
    max_seconds: float = 30.0
    """Of longer clips the middle is taken."""
    baselines: bool = True
    batch_size: int = 32
    num_workers: int = 2
    seed: int = 0
    """Of the random encoder and of the intervals; the probe itself draws nothing."""


@dataclass(frozen=True)
class Outcome:
    """A result, and what is behind it."""

    result: dict[str, Any]
    predictions: Predictions
    features_ND: Tensor | None = None
    """Of the test clips, in the order of the predictions; none where the encoder was trained on the label."""


def random_encoder(config: ModelConfig, seed: int) -> DiffMAViL:
    """The same architecture as it was before training, without touching the global random state."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DiffMAViL(config).eval()


def all_clips(shards: tuple[str, ...], label: str) -> tuple[ClipSet, Task]:
    """The data set, all splits, and its clips that carry `label`."""
    clips = ClipSet(shards, "all")
    rows = ((row, clips.clip(row), clips.shard_of(row)[1].split) for row in range(len(clips)))
    return clips, read_task(rows, label)


def parts_of(clips: ClipSet, task: Task, folds: str) -> list[Parts]:
    """The official split, or one part for each value of the label `folds`."""
    if not folds:
        return [official_parts(task)]
    names = [clips.clip(int(row)).label_dict.get(folds) for row in task.rows_N]
    if not all(isinstance(name, str) and name for name in names):
        raise UserError(f"--folds {folds}: not every clip with label '{task.label}' has one fold")
    return cross_validation_parts(task, [str(name) for name in names])


def embedders_of(model: DiffMAViL, cfg: ProbeConfig) -> dict[str, Embedder]:
    """The checkpoint's features, and with `baselines` those of a random encoder and of no encoder."""
    if cfg.pool.kind != "mean" and not model.cfg.cls_token:
        raise UserError(f"pooling '{cfg.pool.kind}' needs a class token, which this model has not; use mean")
    depth = min(model.cfg.audio.depth, model.cfg.video.depth)
    if not 1 <= cfg.pool.layers <= depth:
        raise UserError(f"the encoder has {depth} layers, so --layers must lie in 1 to {depth}, got {cfg.pool.layers}")
    embedders: dict[str, Embedder] = {ENCODER: FrozenEncoder(model, cfg.modality, cfg.pool)}
    if cfg.baselines:
        embedders[RANDOM] = FrozenEncoder(random_encoder(model.cfg, cfg.seed), cfg.modality, cfg.pool)
        name, plain = PLAIN_FEATURES[cfg.modality]
        embedders[name] = plain
    return embedders


def run_probe(checkpoint: Path, shards: tuple[str, ...], cfg: ProbeConfig) -> Outcome:
    """Extracts, fits, selects, tests; under several ranks the extraction is shared and each rank gets the outcome.

    Raises:
        UserError: no weights, no such label, no test clips, or too few clips with the modality.
    """
    model = load_model(checkpoint)
    clips, task = all_clips(shards, cfg.label)
    seconds = longest_clip(clips, task.rows_N.tolist(), cfg.max_seconds)
    reading = Reading(input_for(model, seconds, cfg.modality), cfg.modality, cfg.batch_size, cfg.num_workers)
    found = extract(embedders_of(model, cfg), clips, task.rows_N.tolist(), reading)
    usable = np.flatnonzero(found.usable_N(cfg.modality))
    if not len(usable):
        raise UserError(f"no clip with label '{cfg.label}' could be read with modality '{cfg.modality}'")
    unreadable, task = len(task) - len(usable), task.take(usable)
    parts = parts_of(clips, task, cfg.folds)
    method = METHODS[cfg.classifier]
    device = PartialState().device
    tested = {name: evaluate(x_ND[usable].to(device), task, parts, method) for name, x_ND in found.features.items()}
    ours = tested.pop(ENCODER)
    others = {name: other.predictions for name, other in tested.items()} | {"majority_class": majority(task, parts)}
    if not np.isfinite(
        intervals.point(ours.predictions.statistic(ours.predictions.metric), len(ours.predictions.keys))
    ):
        raise UserError(f"no test clip has any class of the label '{cfg.label}', so there is nothing to score")
    result = {
        "task": f"{cfg.classifier}_probe",
        "label": cfg.label,
        "modality": cfg.modality,
        **beside(ours.predictions, others, cfg.seed),
        "parts": ours.parts,
        **across_parts(ours.parts),
        "classes": list(task.classes),
        "clips": {"used": len(task), "without_label": task.without_label, "unreadable": unreadable},
        "probe": dataclasses.asdict(cfg),
        **origin(checkpoint, model, clips, shards, cfg.seed),
    }
    test = np.concatenate([part.test for part in parts])
    return Outcome(result, ours.predictions, found.features[ENCODER][usable][test])
