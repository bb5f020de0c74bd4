"""Classification metrics, each for many weightings of the clips at once, so that a bootstrap costs one sort a class.

N clips, C classes, R weightings, T thresholds. Scores are any numbers that rank (logits, probabilities). Equal to
scikit-learn's `accuracy_score`, `average_precision_score` and `roc_auc_score` with `sample_weight`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

__all__ = [
    "Metric",
    "accuracy",
    "average_precision",
    "by_class",
    "d_prime",
    "mean_auc",
    "mean_average_precision",
    "roc_auc",
]

Floats = NDArray[np.float64]
Metric = Callable[[NDArray[np.floating], NDArray[np.generic], Floats], Floats]
"""(scores_NC, target, weight_RN) -> [R]; the target is a class index a clip, or a bool for each clip and class."""


def accuracy(scores_NC: NDArray[np.floating], target_N: NDArray[np.generic], weight_RN: Floats) -> Floats:
    """[R] share of clips whose highest score is their class; the first of equal scores counts, as in `argmax`."""
    right_N = (scores_NC.argmax(axis=1) == target_N).astype(np.float64)
    return (weight_RN @ right_N) / weight_RN.sum(axis=1)


def _curve(score_N: NDArray[np.floating], positive_N: NDArray[np.bool_], weight_RN: Floats) -> tuple[Floats, Floats]:
    """Weight of true and of false positives at each distinct threshold, highest first: two arrays [R, T]."""
    order_N = np.argsort(-score_N, kind="stable")
    ends_T = np.append(np.flatnonzero(np.diff(score_N[order_N])), len(score_N) - 1)
    sorted_RN, hit_N = weight_RN[:, order_N], positive_N[order_N]
    true_RT = np.cumsum(sorted_RN * hit_N, axis=1)[:, ends_T]
    false_RT = np.cumsum(sorted_RN * ~hit_N, axis=1)[:, ends_T]
    return true_RT, false_RT


def average_precision(score_N: NDArray[np.floating], positive_N: NDArray[np.bool_], weight_RN: Floats) -> Floats:
    """[R] area under the precision-recall steps; NaN where no weight lies on a positive."""
    true_RT, false_RT = _curve(score_N, positive_N, weight_RN)
    total_R1 = true_RT[:, -1:]
    with np.errstate(invalid="ignore"):
        precision_RT = np.nan_to_num(true_RT / (true_RT + false_RT))
        return (np.diff(true_RT, axis=1, prepend=0) * precision_RT).sum(axis=1) / total_R1[:, 0]


def roc_auc(score_N: NDArray[np.floating], positive_N: NDArray[np.bool_], weight_RN: Floats) -> Floats:
    """[R] chance that a positive outranks a negative, ties counting half; NaN without weight on both."""
    true_RT, false_RT = _curve(score_N, positive_N, weight_RN)
    before_RT = np.concatenate([np.zeros_like(true_RT[:, :1]), true_RT[:, :-1]], axis=1)
    pairs_R = (np.diff(false_RT, axis=1, prepend=0) * (true_RT + before_RT) / 2).sum(axis=1)
    with np.errstate(invalid="ignore"):
        area_R: Floats = pairs_R / (true_RT[:, -1] * false_RT[:, -1])
    return area_R


def by_class(
    metric: Callable[[NDArray[np.floating], NDArray[np.bool_], Floats], Floats],
    scores_NC: NDArray[np.floating],
    target_NC: NDArray[np.generic],
    weight_RN: Floats,
) -> Floats:
    """[R, C]: a metric of ranking for each class; NaN where the class can't be judged."""
    positive_NC = target_NC.astype(bool)
    columns = [metric(scores_NC[:, c], positive_NC[:, c], weight_RN) for c in range(scores_NC.shape[1])]
    return np.stack(columns, axis=1)


def _mean_over_classes(values_RC: Floats) -> Floats:
    """[R] mean over the classes that can be judged; NaN where none can."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        means_R: Floats = np.nanmean(values_RC, axis=1)
    return means_R


def mean_average_precision(
    scores_NC: NDArray[np.floating], target_NC: NDArray[np.generic], weight_RN: Floats
) -> Floats:
    """[R] mAP; classes without positives are left out."""
    return _mean_over_classes(by_class(average_precision, scores_NC, target_NC, weight_RN))


def mean_auc(scores_NC: NDArray[np.floating], target_NC: NDArray[np.generic], weight_RN: Floats) -> Floats:
    """[R] ROC AUC averaged over the classes that have both positives and negatives."""
    return _mean_over_classes(by_class(roc_auc, scores_NC, target_NC, weight_RN))


def d_prime(scores_NC: NDArray[np.floating], target_NC: NDArray[np.generic], weight_RN: Floats) -> Floats:
    """[R] sqrt(2) times the normal quantile of the mean AUC (Hershey et al. 2017, section 3)."""
    d_R: Floats = np.sqrt(2) * ndtri(mean_auc(scores_NC, target_NC, weight_RN))
    return d_R


def without_positives(target_NC: NDArray[np.generic]) -> NDArray[np.int64]:
    """Classes that no clip has; mAP and AUC leave them out."""
    return np.flatnonzero(~target_NC.astype(bool).any(axis=0))


SINGLE_LABEL: dict[str, Metric] = {"accuracy": accuracy}
MULTI_LABEL: dict[str, Metric] = {"map": mean_average_precision, "auc": mean_auc, "d_prime": d_prime}
"""Metrics of a task by name; the first is the one that selection and headlines use."""
PROPORTIONS = frozenset({"accuracy", "recall_at_1"})
"""Metrics that are means over clips of values between 0 and 1, so that their intervals have a closed form."""
