"""AVA-ActiveSpeaker's measure: average precision of one class, as its evaluation script computes it.

Rows are joined by frame_timestamp:entity_id and sorted by score, the highest first. Precision and recall are taken
after every row, ties included, and precision at a recall is the highest one at that recall or a higher one (VOC).
scikit-learn's average precision takes no such maximum and joins rows of one score, so it differs. Where rows of one
score have different labels, the script's value depends on how its sort leaves them; here they stay in the order of the
ground truth, and the range of all orders is given, too. N rows, R weightings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avpretrain.core.errors import UserError
from avpretrain.measures.results import Result
from avpretrain.methods.speaker.ava import LABELS, SPEAKING, AvaRows

BOX_TOLERANCE = 1e-9
"""Largest difference of a box's corner between ground truth and predictions."""
Floats = NDArray[np.float64]


def average_precision(score_N: NDArray[np.floating], positive_N: NDArray[np.bool_]) -> float:
    """Average precision in [0, 1]; rows of one score stay in their order. NaN where no row is positive."""
    return float(weighted_average_precision(score_N, positive_N, np.ones((1, len(score_N))))[0])


def weighted_average_precision(
    score_N: NDArray[np.floating], positive_N: NDArray[np.bool_], weight_RN: Floats
) -> Floats:
    """[R] the same where rows count several times or not at all, for resampling."""
    order_N = np.argsort(-score_N, kind="stable")
    hit_N = positive_N[order_N].astype(np.float64)
    values_R = np.empty(len(weight_RN))
    for i, weight_N in enumerate(weight_RN):
        sorted_N = weight_N[order_N]
        true_N, all_N = np.cumsum(sorted_N * hit_N), np.cumsum(sorted_N)
        if not len(true_N) or true_N[-1] == 0:
            values_R[i] = np.nan
            continue
        precision_N = np.divide(true_N, all_N, out=np.zeros_like(true_N), where=all_N > 0)
        highest_N = np.maximum.accumulate(precision_N[::-1])[::-1]
        values_R[i] = (np.diff(true_N, prepend=0.0) * highest_N).sum() / true_N[-1]
    return values_R


def tie_range(score_N: NDArray[np.floating], positive_N: NDArray[np.bool_]) -> tuple[float, float]:
    """Lowest and highest average precision over all orders of rows that have one score."""
    last_N, first_N = np.argsort(positive_N, kind="stable"), np.argsort(~positive_N, kind="stable")
    low, high = (average_precision(score_N[order_N], positive_N[order_N]) for order_N in (last_N, first_N))
    return low, high


@dataclass(frozen=True, kw_only=True)
class SpeakerScore(Result):
    """Average precision over the rows of a table."""

    average_precision: float
    lowest: float
    """Over all orders of rows that have one score; as the next."""
    highest: float
    rows: int
    positives: int


def score_rows(score_N: NDArray[np.floating], positive_N: NDArray[np.bool_]) -> SpeakerScore:
    """Average precision of scores.

    Raises:
        UserError: no row is positive, so it is not defined.
    """
    if not positive_N.any():
        raise UserError(f"none of {len(positive_N)} rows is {LABELS[SPEAKING]}, so average precision is not defined")
    low, high = tie_range(score_N, positive_N)
    return SpeakerScore(
        average_precision=average_precision(score_N, positive_N),
        lowest=low,
        highest=high,
        rows=len(positive_N),
        positives=int(positive_N.sum()),
    )


def evaluate(truth: AvaRows, predictions: AvaRows) -> SpeakerScore:
    """Average precision of predictions, by AVA's rules.

    Raises:
        UserError: the tables differ in rows or boxes, a row stands twice, a prediction's label is not
            SPEAKING_AUDIBLE, or no row of the ground truth is.
    """
    if predictions.score_N is None:
        raise UserError(f"{predictions.path} has no scores")
    if len(truth) != len(predictions):
        raise UserError(
            f"{predictions.path} has {len(predictions)} rows and {truth.path} has {len(truth)}; predictions hold a row "
            "for each of the ground truth"
        )
    other = np.flatnonzero(predictions.label_N != SPEAKING)
    if len(other):
        label = LABELS[predictions.label_N[other[0]]]
        raise UserError(
            f"{predictions.path}: row {other[0] + 1} has label {label}; predictions have {LABELS[SPEAKING]} everywhere"
        )
    names = {entity: i for i, entity in enumerate(truth.entities)}
    codes = np.array([names.get(entity, -1) for entity in predictions.entities], np.int64)
    there_N = codes[predictions.entity_N]
    ours_N, theirs_N = _by_name(truth, truth.entity_N), _by_name(predictions, there_N)
    differs_N = (truth.entity_N[ours_N] != there_N[theirs_N]) | (truth.time_N[ours_N] != predictions.time_N[theirs_N])
    if differs_N.any():
        row = ours_N[np.flatnonzero(differs_N)[0]]
        raise UserError(f"{predictions.path} lacks row {truth.uid(int(row))} of {truth.path}, or has another twice")
    apart_N = (np.abs(truth.box_N4[ours_N] - predictions.box_N4[theirs_N]) > BOX_TOLERANCE).any(axis=1)
    if apart_N.any():
        row = int(ours_N[np.flatnonzero(apart_N)[0]])
        raise UserError(
            f"{predictions.path}: the box of {truth.uid(row)} differs from that in {truth.path} "
            f"({int(apart_N.sum())} rows do)"
        )
    score_N = np.empty(len(truth))
    score_N[ours_N] = predictions.score_N[theirs_N]
    return score_rows(score_N, truth.label_N == SPEAKING)


def _by_name(rows: AvaRows, entity_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """The order of rows by entity and time.

    Raises:
        UserError: a row stands twice.
    """
    order_N = np.lexsort((rows.time_N, entity_N))
    same_N = (np.diff(entity_N[order_N]) == 0) & (np.diff(rows.time_N[order_N]) == 0) & (entity_N[order_N][1:] >= 0)
    if same_N.any():
        row = int(order_N[np.flatnonzero(same_N)[0]])
        raise UserError(f"{rows.path} holds row {rows.uid(row)} twice")
    return order_N
