"""What probing, fine-tuning and retrieval share: which clips are for what, the encoder before training, the outcome."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from avpretrain.core.errors import UsageError, UserError
from avpretrain.data.read.clips import ClipSet
from avpretrain.data.splits import SplitRoles, split_names
from avpretrain.evaluation.labels import (
    Parts,
    Task,
    cross_validation_parts,
    made_folds,
    official_parts,
    read_task,
)
from avpretrain.evaluation.predictions import Predictions
from avpretrain.methods.diffmavil.config import ModelConfig
from avpretrain.methods.diffmavil.model import DiffMAViL


@runtime_checkable
class Splits(Protocol):
    """Settings that say which clips are for what."""

    @property
    def folds(self) -> str: ...
    @property
    def train_split(self) -> str | tuple[str, ...]: ...
    @property
    def val_split(self) -> str | tuple[str, ...]: ...
    @property
    def test_split(self) -> str | tuple[str, ...]: ...


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


def all_clips(shards: tuple[str, ...], label: str, roles: SplitRoles = SplitRoles()) -> tuple[ClipSet, Task]:  # noqa: B008
    """The data set, all splits, and its clips that carry `label`; where `roles` names splits, no others but those.

    Raises:
        UserError: see `read_task`; or there is no split of a name.
    """
    clips = ClipSet(shards, "all")
    roles.require(clips.clips_by_split)
    rows = ((row, clips.clip(row), clips.shard_of(row)[1].split) for row in range(len(clips)))
    task = read_task(rows, label, roles)
    used = np.flatnonzero(np.isin(np.array(task.splits), ("train", "val", "test")))
    return clips, task.take(used) if roles != SplitRoles() and len(used) else task


def roles_of(cfg: Splits) -> SplitRoles:
    """Which splits are for what.

    Raises:
        UsageError: a split is named twice, or splits and folds are both named.
    """
    if cfg.folds and (cfg.train_split or cfg.val_split or cfg.test_split):
        raise UsageError(f"--folds {cfg.folds} takes clips of all splits; name splits or folds, not both")
    return SplitRoles(
        train=split_names(cfg.train_split), val=split_names(cfg.val_split), test=split_names(cfg.test_split)
    )


def parts_of(clips: ClipSet, task: Task, folds: str) -> list[Parts]:
    """The official split, or one part for each value of the label `folds`, or as many parts as the number it is."""
    if not folds:
        return [official_parts(task)]
    if folds.isdecimal():
        return cross_validation_parts(task, made_folds(task, int(folds)))
    names = [clips.clip(int(row)).label_dict.get(folds) for row in task.rows_N]
    if not all(isinstance(name, str) and name for name in names):
        raise UserError(
            f"--folds {folds}: not every clip with label '{task.label}' has one fold; name a label that gives each "
            "clip its fold, or a number of folds to make"
        )
    return cross_validation_parts(task, [str(name) for name in names])
