"""95% intervals by bootstrap over clips (Efron 1979, percentile method), and paired differences.

N clips, R resamples. A resample is how often each clip was drawn, so that a metric sees it as weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Weights [R, N] -> values [R]."""

RESAMPLES = 1000
_CHUNK_VALUES = 4_000_000


def _resamples(clips: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Chunks [R', N] of bootstrap weights that fit in memory."""
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_VALUES // clips)
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = rng.integers(0, clips, (rows, clips)) + np.arange(rows)[:, None] * clips
        yield np.bincount(drawn.ravel(), minlength=rows * clips).reshape(rows, clips).astype(np.float64)


def point(statistic: Statistic, clips: int) -> float:
    """The statistic with every clip counted once."""
    return float(statistic(np.ones((1, clips)))[0])


def interval(statistic: Statistic, clips: int, seed: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95% percentile interval; resamples in which the statistic is undefined (NaN) are left out."""
    values = np.concatenate([statistic(weight_RN) for weight_RN in _resamples(clips, resamples, seed)])
    low, high = np.nanpercentile(values, [2.5, 97.5], method="inverted_cdf")
    return float(low), float(high)


def estimate(statistic: Statistic, clips: int, seed: int) -> dict[str, Any]:
    """`value` and `ci` of a statistic, as results record them; null where it is undefined or infinite."""
    values = [point(statistic, clips), *interval(statistic, clips, seed)]
    value, low, high = (x if math.isfinite(x) else None for x in values)
    return {"value": value, "ci": [low, high]}


def across(scores: Sequence[float]) -> dict[str, Any]:
    """Mean of the scores of several folds, and its 95% interval by Student's t.

    Folds share training clips, so this interval is too narrow if anything; the one over clips stands beside it.
    """
    half = float(t.ppf(0.975, len(scores) - 1)) * float(np.std(scores, ddof=1)) / math.sqrt(len(scores))
    mean = float(np.mean(scores))
    return {"mean": mean, "ci": [mean - half, mean + half]}
