"""Fits classifiers of frozen features, chooses one by validation clips, and only then looks at test clips.

N clips, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avpretrain.evaluation.labels import Parts, Task
from avpretrain.evaluation.predictions import Predictions
from avpretrain.evaluation.probe import knn, logistic
from avpretrain.measures import intervals
from avpretrain.measures.metrics import MULTI_LABEL, SINGLE_LABEL

Classifier = Callable[[Tensor], NDArray[np.float64]]
"""Features [N, D] -> scores [N, C]."""
Fit = Callable[[Tensor, Tensor, int, Sequence[float]], list[Classifier]]
"""(features, target, classes, settings) -> a classifier for each setting."""


@dataclass(frozen=True)
class Method:
    """A kind of classifier, and what is tried of it."""

    fit: Fit
    setting: str
    """Name of what is chosen on validation clips."""
    grid: tuple[float, ...]
    """Its values, simplest first: of equal ones the first wins."""


def _linear(x_ND: Tensor, target: Tensor, classes: int, settings: Sequence[float]) -> list[Classifier]:
    return [fitted.logits for fitted in logistic.fit_path(x_ND, target, classes, settings)]


METHODS = {
    "linear": Method(_linear, "l2", tuple(10.0**power for power in range(1, -7, -1))),
    "knn": Method(knn.fit, "k", (50.0, 20.0, 10.0, 5.0, 3.0, 1.0)),
}


@dataclass(frozen=True)
class Tested:
    """Predictions on every test clip, and what was chosen on the way."""

    predictions: Predictions
    parts: list[dict[str, Any]]
    """For each split or fold: sizes, the setting, and the headline metric on validation and test clips."""


def headline(scores_NC: NDArray[np.floating], target: NDArray[np.generic]) -> float:
    """Accuracy, or mAP where clips have several classes."""
    metric = next(iter((SINGLE_LABEL if target.ndim == 1 else MULTI_LABEL).values()))
    return intervals.point(lambda weight_RN: metric(scores_NC, target, weight_RN), len(target))


def select(x_ND: Tensor, task: Task, part: Parts, method: Method) -> tuple[Classifier, float, float]:
    """The classifier for one split, its setting and its validation score."""
    classes = len(task.classes)
    fitted = method.fit(x_ND[part.fit], torch.from_numpy(task.target[part.fit]), classes, method.grid)
    scores = [headline(classifier(x_ND[part.val]), task.target[part.val]) for classifier in fitted]
    best = int(np.argmax(np.nan_to_num(scores, nan=-1.0)))
    if not part.val_is_training:
        return fitted[best], method.grid[best], scores[best]
    both = np.concatenate([part.fit, part.val])
    (again,) = method.fit(x_ND[both], torch.from_numpy(task.target[both]), classes, [method.grid[best]])
    return again, method.grid[best], scores[best]


def evaluate(x_ND: Tensor, task: Task, parts: Sequence[Parts], method: Method) -> Tested:
    """Selects and tests on each part; folds are pooled, since each clip is tested once.

    Args:
        x_ND: features of the task's clips, in the task's order.
    """
    scores, part_results = [], []
    for part in parts:
        classifier, setting, val_score = select(x_ND, task, part, method)
        test_NC = classifier(x_ND[part.test])
        scores.append(test_NC)
        sizes = {"fit": len(part.fit), "val": len(part.val), "test": len(part.test)}
        test_score = headline(test_NC, task.target[part.test])
        chosen = {method.setting: setting, "val_score": val_score, "test_score": test_score}
        part_results.append({"name": part.name, **sizes, **chosen})
    return Tested(pool(task, parts, scores), part_results)


def across_parts(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`across_folds` for a result: mean and interval of the headline over folds; nothing where there is one split."""
    return {"across_folds": intervals.across([part["test_score"] for part in parts])} if len(parts) > 1 else {}


def at_edge(parts: Sequence[Mapping[str, Any]], method: Method) -> list[str]:
    """Names of the parts whose setting is the first or the last that was tried: a better one may lie beyond."""
    return [part["name"] for part in parts if part[method.setting] in (method.grid[0], method.grid[-1])]


def majority(task: Task, parts: Sequence[Parts]) -> Predictions:
    """What always answering the training clips' class frequencies gets."""
    scores = []
    for part in parts:
        seen = task.target[np.concatenate([part.fit, part.val])]
        counts_C = np.bincount(seen, minlength=len(task.classes)) if seen.ndim == 1 else seen.sum(axis=0)
        scores.append(np.tile(counts_C.astype(np.float64), (len(part.test), 1)))
    return pool(task, parts, scores)


def pool(task: Task, parts: Sequence[Parts], scores: Sequence[NDArray[np.floating]]) -> Predictions:
    """Predictions of all parts' test clips, one after the other."""
    test = np.concatenate([part.test for part in parts])
    keys = tuple(task.keys[i] for i in test)
    return Predictions(keys, task.classes, np.concatenate(scores), task.target[test])
