"""Linear probe: how well a linear classifier reads a label off frozen features.

N clips, D features, C classes. The regulariser is chosen on validation clips; test labels are read only to score the
classifier that was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avpretrain.evaluation import intervals
from avpretrain.evaluation.labels import Ints, Parts, Task
from avpretrain.evaluation.logistic import LinearClassifier, fit_path
from avpretrain.evaluation.metrics import MULTI_LABEL, SINGLE_LABEL, Metric, without_positives

L2S = tuple(10.0**power for power in range(1, -7, -1))
"""Regularisers that are tried, strongest first: weight of half the squared norm beside the mean loss."""


@dataclass(frozen=True)
class Predictions:
    """Scores of test clips by the classifier that was chosen without them."""

    keys: tuple[str, ...]
    classes: tuple[str, ...]
    scores_NC: NDArray[np.float64]
    target: NDArray[np.generic]
    """Class index [N], or bool [N, C]."""

    @property
    def metrics(self) -> dict[str, Metric]:
        """The task's metrics; the first is the headline."""
        return SINGLE_LABEL if self.target.ndim == 1 else MULTI_LABEL

    def statistic(self, name: str) -> intervals.Statistic:
        """A metric of these predictions as a function of the clips' weights."""
        return lambda weight_RN: self.metrics[name](self.scores_NC, self.target, weight_RN)


@dataclass(frozen=True)
class Probed:
    """A probe's predictions on every test clip, and what was chosen on the way."""

    predictions: Predictions
    parts: list[dict[str, Any]]
    """For each split or fold: sizes, the regulariser, and the headline metric on validation and test clips."""


def headline(scores_NC: NDArray[np.floating], target: NDArray[np.generic]) -> float:
    """Accuracy, or mAP where clips have several classes."""
    metrics = SINGLE_LABEL if target.ndim == 1 else MULTI_LABEL
    return intervals.point(lambda weight_RN: next(iter(metrics.values()))(scores_NC, target, weight_RN), len(target))


def select(x_ND: Tensor, task: Task, part: Parts, l2s: Sequence[float] = L2S) -> tuple[LinearClassifier, float, float]:
    """The classifier for one split, its regulariser and its validation score; of equals the most regularised wins."""
    classes = len(task.classes)
    fitted = fit_path(x_ND[part.fit], torch.from_numpy(task.target[part.fit]), classes, l2s)
    scores = [headline(c.logits(x_ND[part.val]), task.target[part.val]) for c in fitted]
    best = int(np.argmax(np.nan_to_num(scores, nan=-1.0)))
    if not part.val_is_training:
        return fitted[best], l2s[best], scores[best]
    both: Ints = np.concatenate([part.fit, part.val])
    (refitted,) = fit_path(x_ND[both], torch.from_numpy(task.target[both]), classes, [l2s[best]])
    return refitted, l2s[best], scores[best]


def probe(x_ND: Tensor, task: Task, parts: Sequence[Parts], l2s: Sequence[float] = L2S) -> Probed:
    """Fits, selects and tests on each part; folds are pooled, since each clip is tested once.

    Args:
        x_ND: features of the task's clips, in the task's order.
    """
    scores, said = [], []
    for part in parts:
        classifier, l2, val_score = select(x_ND, task, part, l2s)
        test_NC = classifier.logits(x_ND[part.test])
        scores.append(test_NC)
        said.append(
            {"name": part.name, "fit": len(part.fit), "val": len(part.val), "test": len(part.test), "l2": l2,
             "val_score": val_score, "test_score": headline(test_NC, task.target[part.test])}
        )  # fmt: skip
    return Probed(_pool(task, parts, scores), said)


def majority(task: Task, parts: Sequence[Parts]) -> Predictions:
    """What always answering the training clips' class frequencies gets."""
    scores = []
    for part in parts:
        seen = task.target[np.concatenate([part.fit, part.val])]
        counts_C = np.bincount(seen, minlength=len(task.classes)) if seen.ndim == 1 else seen.sum(axis=0)
        scores.append(np.tile(counts_C.astype(np.float64), (len(part.test), 1)))
    return _pool(task, parts, scores)


def _pool(task: Task, parts: Sequence[Parts], scores: Sequence[NDArray[np.float64]]) -> Predictions:
    test = np.concatenate([part.test for part in parts])
    keys = tuple(task.keys[i] for i in test)
    return Predictions(keys, task.classes, np.concatenate(scores), task.target[test])


def summarise(predictions: Predictions, seed: int) -> dict[str, Any]:
    """Every metric of the task with its interval; the headline's interval also stands under `ci`."""
    clips = len(predictions.target)
    found = {name: intervals.estimate(predictions.statistic(name), clips, seed) for name in predictions.metrics}
    first = next(iter(found))
    summary: dict[str, Any] = {"metric": first, **{name: value["value"] for name, value in found.items()}}
    summary["ci"] = found[first]["ci"]
    summary["cis"] = {name: value["ci"] for name, value in found.items()}
    if predictions.target.ndim == 2:
        left_out = without_positives(predictions.target)
        summary["classes_without_positives"] = [predictions.classes[i] for i in left_out]
    return summary


def difference(a: Predictions, b: Predictions, seed: int) -> dict[str, Any]:
    """Headline metric of `a` less that of `b` on the same clips, with a paired bootstrap interval."""
    name = next(iter(a.metrics))
    of_a, of_b = a.statistic(name), b.statistic(name)
    return intervals.estimate(lambda weight_RN: of_a(weight_RN) - of_b(weight_RN), len(a.target), seed)


def summarise_all(probed: Mapping[str, Probed], task: Task, parts: Sequence[Parts], seed: int) -> dict[str, Any]:
    """The result of the first feature set beside the others as baselines, and beside the majority class."""
    ours, *others = probed
    result = {**summarise(probed[ours].predictions, seed), "parts": probed[ours].parts}
    baselines = {}
    predictions = {name: probed[name].predictions for name in others} | {"majority_class": majority(task, parts)}
    for name, theirs in predictions.items():
        gain = difference(probed[ours].predictions, theirs, seed)
        baselines[name] = {**summarise(theirs, seed), "difference": gain["value"], "difference_ci": gain["ci"]}
    return {**result, "baselines": baselines}
