"""What a classifier is to learn, and from which clips: labels as targets, splits and folds as index arrays.

N clips with the label, C classes. Nothing here sees a feature, and the parts depend on no label of a test clip.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from avpretrain.core.errors import UserError
from avpretrain.data.manifest import Clip
from avpretrain.data.splits import SplitRoles

Ints = NDArray[np.int64]

VALIDATION_SHARE = 0.2


@dataclass(frozen=True)
class Task:
    """The clips that carry one label."""

    label: str
    classes: tuple[str, ...]
    rows_N: Ints
    """Rows of the clips in the data set."""
    keys: tuple[str, ...]
    target: NDArray[np.generic]
    """Class index [N], or bool [N, C] where a clip may have several classes."""
    groups: tuple[str, ...]
    """The file each clip was cut from: clips of one file never stand on both sides of a carved split."""
    splits: tuple[str, ...]
    """What each clip is for: train, val or test; another name = it is not used."""
    without_label: int
    """Clips of the data set that do not carry it."""

    def __len__(self) -> int:
        return len(self.rows_N)

    @property
    def multi_label(self) -> bool:
        return self.target.ndim == 2

    def take(self, chosen: Ints) -> Task:
        """The task on some of its clips."""

        def of(values: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(values[i] for i in chosen)

        return replace(
            self, rows_N=self.rows_N[chosen], target=self.target[chosen], keys=of(self.keys), groups=of(self.groups),
            splits=of(self.splits),
        )  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """Which clips of a task fit, select and test a classifier; indices into the task."""

    name: str
    fit: Ints
    val: Ints
    test: Ints
    val_is_training: bool
    """The validation clips belong to the training data, so the chosen classifier is fitted again with them."""


def read_task(clips: Iterable[tuple[int, Clip, str]], label: str, roles: SplitRoles = SplitRoles()) -> Task:  # noqa: B008
    """The label `label` of all clips that have it.

    Args:
        clips: row, clip and split.
        roles: which splits are for what.

    Raises:
        UserError: no clip has the label (the message names those there are), or all have the same value.
    """
    rows, keys, values, groups, splits = [], [], [], [], []
    seen: Counter[str] = Counter()
    without = 0
    for row, clip, split in clips:
        labels = clip.label_dict
        seen.update(labels.keys())
        value = labels.get(label)
        if value is None or value == "":
            without += 1
            continue
        rows.append(row)
        keys.append(clip.key)
        values.append(value)
        groups.append(clip.source)
        splits.append(roles.of(split) or f"{split} (not used)")
    if not rows:
        known = f"labels there are: {', '.join(sorted(seen))}" if seen else "the data set has no labels at all"
        raise UserError(f"no clip has the label '{label}'; {known}")
    classes, target = _encode(values, label)
    return Task(
        label=label, classes=classes, rows_N=np.array(rows), keys=tuple(keys), target=target, groups=tuple(groups),
        splits=tuple(splits), without_label=without,
    )  # fmt: skip


def _encode(values: Sequence[str | list[str]], label: str) -> tuple[tuple[str, ...], NDArray[np.generic]]:
    """Sorted classes, and each clip's as an index or, where any clip has a list, as bools."""
    lists = [value if isinstance(value, list) else [value] for value in values]
    classes = tuple(sorted({name for value in lists for name in value}))
    if len(classes) < 2:
        raise UserError(
            f"the label '{label}' has the same value in every clip ({', '.join(classes)}): nothing to learn"
        )
    index = {name: i for i, name in enumerate(classes)}
    if not any(isinstance(value, list) for value in values):
        return classes, np.array([index[value[0]] for value in lists])
    target_NC = np.zeros((len(lists), len(classes)), dtype=bool)
    for row, value in enumerate(lists):
        target_NC[row, [index[name] for name in value]] = True
    return classes, target_NC


def official_parts(task: Task) -> Parts:
    """The data set's own splits; where it has no validation split, a fifth of the training clips.

    Raises:
        UserError: there is no train or no test split.
    """
    split_N = np.array(task.splits)
    train, val, test = (np.flatnonzero(split_N == name) for name in ("train", "val", "test"))
    for name, part in (("train", train), ("test", test)):
        if not len(part):
            there = ", ".join(sorted(set(task.splits)))
            raise UserError(
                f"no clip with label '{task.label}' is in a {name} split (splits: {there}); "
                f"say which with --{name}-split, shard the data with a split column, or cross-validate with --folds 5 "
                "or --folds LABEL"
            )
    if len(val):
        return _learnable(task, [Parts("official", train, val, test, val_is_training=False)])[0]
    fit, val = carve(train, task.groups)
    return _learnable(task, [Parts("official", fit, val, test, val_is_training=True)])[0]


def _learnable(task: Task, parts: list[Parts]) -> list[Parts]:
    """The parts, if a classifier could tell anything of a test clip.

    Raises:
        UserError: no class has two training clips, or none of a test clip's classes has one.
    """
    seen = [_counts(task, np.concatenate([part.fit, part.val])) for part in parts]
    if all(count.max(initial=0) < 2 for count in seen):
        raise UserError(
            f"the label '{task.label}' has {len(task.classes)} values for {len(task)} clips, and no two training clips "
            "have the same: it tells clips apart, and is no class to learn"
        )
    if not any(np.any((count > 0) & (_counts(task, part.test) > 0)) for count, part in zip(seen, parts, strict=True)):
        raise UserError(
            f"no test clip has a value of the label '{task.label}' that a training clip has ({len(task.classes)} "
            f"values for {len(task)} clips): nothing can be learnt of them"
        )
    return parts


def _counts(task: Task, chosen: Ints) -> Ints:
    """Clips of each class [C] among some."""
    if task.multi_label:
        return task.target[chosen].sum(axis=0).astype(np.int64)
    return np.bincount(task.target[chosen].astype(np.int64), minlength=len(task.classes))


def without_test(task: Task) -> Task:
    """The task without its test clips: validation clips (a fifth of the training clips, where there are none) take
    their place, so that what is chosen by their score has seen no test clip. Splits of other names go too.

    Raises:
        UserError: there are no training clips.
    """
    split_N = np.array(task.splits)
    train, val = np.flatnonzero(split_N == "train"), np.flatnonzero(split_N == "val")
    if not len(train):
        raise UserError(f"no clip with label '{task.label}' is in a train split (splits: {sorted(set(task.splits))})")
    if not len(val):
        train, val = carve(train, task.groups)
    kept = np.sort(np.concatenate([train, val]))
    held_out = set(val.tolist())
    return replace(task.take(kept), splits=tuple("test" if i in held_out else "train" for i in kept.tolist()))


def cross_validation_parts(task: Task, folds: Sequence[str]) -> list[Parts]:
    """One part for each fold as the test set, in the folds' order; the next fold validates, and joins the final fit.

    Args:
        folds: each clip's fold.

    Raises:
        UserError: there are fewer than three folds.
    """
    fold_N = np.array(folds)
    names = sorted(set(folds), key=lambda name: (len(name), name))
    if len(names) < 3:
        raise UserError(f"cross-validation needs at least 3 folds, the data set has {len(names)}: {', '.join(names)}")
    parts = []
    for i, name in enumerate(names):
        following = names[(i + 1) % len(names)]
        fit = np.flatnonzero((fold_N != name) & (fold_N != following))
        val, test = np.flatnonzero(fold_N == following), np.flatnonzero(fold_N == name)
        parts.append(Parts(f"fold {name}", fit, val, test, val_is_training=True))
    return _learnable(task, parts)


def made_folds(task: Task, count: int) -> list[str]:
    """A fold from 1 to `count` for each clip, of a set without official ones: its files by hash, dealt out in turn.

    Clips of one file share a fold.

    Raises:
        UserError: there are fewer than three folds, or fewer files than folds.
    """
    if count < 3:
        raise UserError(f"cross-validation needs at least 3 folds, got --folds {count}")
    ranked = _by_hash(task.groups)
    if len(ranked) < count:
        raise UserError(f"{count} folds need as many files, and {len(ranked)} have the label '{task.label}'")
    fold = {name: str(place % count + 1) for place, name in enumerate(ranked)}
    return [fold[name] for name in task.groups]


def _by_hash(names: Iterable[str]) -> list[str]:
    """Each name once, in an order that tells nothing of them."""
    return sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).digest())


def carve(train: Ints, groups: Sequence[str], share: float = VALIDATION_SHARE) -> tuple[Ints, Ints]:
    """Training clips in two: the rest, and a validation part of about `share`, chosen by a hash of each clip's file.

    Whole files go to one side. With fewer than ten files their clips are divided instead, by position.

    Raises:
        UserError: there are fewer than two clips.
    """
    if len(train) < 2:
        raise UserError("a probe needs at least 2 training clips")
    names = [groups[i] for i in train]
    if len(set(names)) < 10:
        names = [f"{name}:{i}" for name, i in zip(names, train, strict=True)]
    ranked = _by_hash(names)
    chosen = set(ranked[: max(1, round(share * len(ranked)))])
    is_val = np.array([name in chosen for name in names])
    return train[~is_val], train[is_val]
