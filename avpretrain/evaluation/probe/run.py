"""Probes: how well a simple classifier reads a label off frozen features, beside features that were not learnt."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

from avpretrain.config.train import mechanics
from avpretrain.core.errors import UserError
from avpretrain.data.read.clips import ClipSet
from avpretrain.evaluation.extract import Extracted, Reading, extract, longest_clip
from avpretrain.evaluation.frozen import (
    PLAIN_FEATURES,
    PLAIN_NAMES,
    Embedder,
    FrozenEncoder,
    input_for,
    sides_of,
)
from avpretrain.evaluation.labels import (
    Task,
    without_test,
)
from avpretrain.evaluation.predictions import with_baselines
from avpretrain.evaluation.probe.selection import METHODS, across_parts, at_edge, evaluate, majority
from avpretrain.evaluation.results import origin
from avpretrain.evaluation.settings import Modality, Pooling
from avpretrain.evaluation.setup import Outcome, all_clips, parts_of, random_encoder, roles_of
from avpretrain.measures import intervals
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.methods.load import load_model

ENCODER, RANDOM, PLAIN = "encoder", "random_encoder", "plain"


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """What to probe, and how."""

    label: str
    modality: Modality = "audio"
    classifier: Literal["linear", "knn"] = "linear"
    pool: Pooling = field(default_factory=Pooling)
    folds: str = ""
    """Label that names official folds, or how many to make; empty = the data set's splits."""
    split: Literal["test", "val"] = "test"
    """What is scored; val: validation clips, and no test clip is touched (folds are of the others)."""
    train_split: str | tuple[str, ...] = ""
    """Splits that are for training; empty = train and those that end in _train."""
    val_split: str | tuple[str, ...] = ""
    """Splits that are for validation; empty = val."""
    test_split: str | tuple[str, ...] = ""
    """Splits that are for test; empty = test and eval."""
    max_seconds: float = 30.0
    """Of longer clips the middle is taken."""
    baselines: bool = True
    batch_size: int = mechanics(32)
    """Clips at a time on each device."""
    num_workers: int = mechanics(2)
    """Processes that decode, for each rank."""
    seed: int = 0
    """Of the random encoder and of the intervals; the probe itself draws nothing."""


def run_probe(checkpoint: Path, shards: tuple[str, ...], cfg: ProbeConfig) -> Outcome:
    """Extracts, fits, selects, tests; under several ranks the extraction is shared and each rank gets the outcome.

    Raises:
        UserError: no weights, no such label, no test clips, or too few clips with the modality.
    """
    return next(run_probes(checkpoint, shards, [cfg]))


def run_probes(checkpoint: Path, shards: tuple[str, ...], cfgs: Sequence[ProbeConfig]) -> Iterator[Outcome]:
    """Several probes of one data set, each as `run_probe` gives it; clips are decoded and encoded once for all.

    Args:
        cfgs: they may differ in label, modality, classifier, folds and splits, and in nothing else.

    Raises:
        ValueError: they differ in something else.
        UserError: see `run_probe`.
    """
    reading = cfgs[0]
    if any(_reading(cfg) != _reading(reading) for cfg in cfgs):
        raise ValueError("probes that share features may differ in label, modality, classifier, folds and splits alone")
    model = load_model(checkpoint)
    asked = [(cfg.label, roles_of(cfg)) for cfg in cfgs]
    tasks = {(label, roles): all_clips(shards, label, roles) for label, roles in dict.fromkeys(asked)}
    clips = next(iter(tasks.values()))[0]
    table = _features(model, clips, [task for _, task in tasks.values()], cfgs)
    for cfg, which in zip(cfgs, asked, strict=True):
        yield _probe(table, checkpoint, model, shards, tasks[which], cfg)


_SHARED: dict[str, Any] = {"folds": "", "train_split": "", "val_split": "", "test_split": ""}


def _reading(cfg: ProbeConfig) -> ProbeConfig:
    """What features depend on, and what is written beside every probe of them."""
    return dataclasses.replace(cfg, label="", modality="audio", classifier="linear", **_SHARED)


@dataclass(frozen=True)
class _FeatureTable:
    """Features by name and side, of rows of the data set."""

    extracted: Extracted
    place: dict[int, int]
    """Row of the data set -> row of the features."""

    def of(self, name: str, cfg: ProbeConfig, rows: Sequence[int]) -> Tensor:
        """[N, D] for a modality."""
        parts = [self.extracted.features[f"{name} {side}"] for side in sides_of(cfg.modality)]
        return torch.cat(parts, dim=1)[self.places(rows)]

    def places(self, rows: Sequence[int]) -> list[int]:
        """Rows of the features."""
        return [self.place[int(row)] for row in rows]


def _features(model: DiffMAViL, clips: ClipSet, tasks: Sequence[Task], cfgs: Sequence[ProbeConfig]) -> _FeatureTable:
    """Features of all clips asked: the checkpoint's, and with `baselines` a random one's and those of no encoder."""
    cfg = cfgs[0]
    if "cls" in cfg.pool.kind and not model.cfg.cls_token:
        raise UserError(f"pooling '{cfg.pool.kind}' needs a class token, which this model has not; use mean or bands")
    depth = min(model.cfg.audio.depth, model.cfg.video.depth)
    if not 1 <= cfg.pool.layers <= depth:
        raise UserError(f"the encoder has {depth} layers, so --layers must lie in 1 to {depth}, got {cfg.pool.layers}")
    models = {ENCODER: model} | ({RANDOM: random_encoder(model.cfg, cfg.seed)} if cfg.baselines else {})
    wanted = {side for cfg in cfgs for side in sides_of(cfg.modality)}
    embedders: dict[str, Embedder] = {}
    for side in sides_of("both"):
        if side in wanted:
            embedders |= {f"{name} {side}": FrozenEncoder(m, side, cfg.pool) for name, m in models.items()}
            embedders |= {f"{PLAIN} {side}": PLAIN_FEATURES[side]} if cfg.baselines else {}
    rows = sorted({int(row) for task in tasks for row in task.rows_N})
    modality: Modality = "both" if len(wanted) == 2 else next(iter(wanted))
    seconds = longest_clip(clips, rows, cfg.max_seconds)
    reading = Reading(input_for(model, seconds, modality), modality, cfg.batch_size, cfg.num_workers)
    return _FeatureTable(extract(embedders, clips, rows, reading), {row: place for place, row in enumerate(rows)})


def _probe(
    table: _FeatureTable, checkpoint: Path, model: DiffMAViL, shards: tuple[str, ...], asked: tuple[ClipSet, Task],
    cfg: ProbeConfig,
) -> Outcome:  # fmt: skip
    clips, task = asked
    usable = np.flatnonzero(table.extracted.usable_N(cfg.modality)[table.places(task.rows_N.tolist())])
    if not len(usable):
        raise UserError(f"no clip with label '{cfg.label}' could be read with modality '{cfg.modality}'")
    unreadable, task = len(task) - len(usable), task.take(usable)
    task = without_test(task) if cfg.split == "val" else task
    parts = parts_of(clips, task, cfg.folds)
    method = METHODS[cfg.classifier]
    names = {ENCODER: ENCODER} | ({RANDOM: RANDOM, PLAIN: PLAIN_NAMES[cfg.modality]} if cfg.baselines else {})
    features = {title: table.of(name, cfg, task.rows_N.tolist()) for name, title in names.items()}
    device = PartialState().device
    tested = {name: evaluate(x_ND.to(device), task, parts, method) for name, x_ND in features.items()}
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
        **with_baselines(ours.predictions, others, cfg.seed),
        "parts": ours.parts,
        **across_parts(ours.parts),
        "tried": {"setting": method.setting, "values": list(method.grid), "at_edge": at_edge(ours.parts, method)},
        "classes": list(task.classes),
        "clips": {"used": len(task), "without_label": task.without_label, "unreadable": unreadable},
        "probe": dataclasses.asdict(cfg),
        **origin(checkpoint, model, clips, shards, cfg.seed),
    }
    test = np.concatenate([part.test for part in parts])
    return Outcome(result, ours.predictions, features[ENCODER][test])
