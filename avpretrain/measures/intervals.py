"""95% intervals: of proportions by Wilson's score, of all else by bootstrap over clips (Efron 1979, percentile method).

N clips, R resamples. A resample is how often each clip was drawn, so that a metric sees it as weights. Where all
resamples agree (a single clip, all clips alike) a bootstrap would claim certainty: such an interval is unknown, unless
a closed form gives it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from avpretrain.measures.results import Estimate

__all__ = ["across", "agresti_min", "estimate", "interval", "point", "wilson"]

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Weights [R, N] -> values [R]."""

RESAMPLES = 1000
_CHUNK_VALUES = 4_000_000
_Z = float(ndtri(0.975))
"""Standard normal quantile of a two-sided 95% interval."""


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
    """95% percentile interval; resamples in which the statistic is undefined (NaN) are left out.

    NaN twice where no resample differs from another: the clips say nothing of how far chance reaches.
    """
    values = np.concatenate([statistic(weight_RN) for weight_RN in _resamples(clips, resamples, seed)])
    known = values[~np.isnan(values)]
    if not len(known) or np.ptp(known) <= 1e-12:
        return math.nan, math.nan
    low, high = np.percentile(known, [2.5, 97.5], method="inverted_cdf")
    return float(low), float(high)


def wilson(share: float, clips: int) -> tuple[float, float]:
    """Wilson's 95% score interval of a proportion (Wilson 1927).

    Also holds, a little too wide, for the mean of clips' values between 0 and 1, whose variance a proportion's bounds.

    Args:
        share: in [0, 1].
        clips: how many were asked, at least 1.
    """
    spread = _Z**2 / clips
    centre = share + spread / 2
    half = math.sqrt(spread * (share * (1 - share) + spread / 4))
    return max(0.0, (centre - half) / (1 + spread)), min(1.0, (centre + half) / (1 + spread))


def agresti_min(difference: float, clips: int) -> tuple[float, float]:
    """95% interval of a paired difference that is the same for all clips (Agresti and Min 2005).

    Half a clip is added to each of the four outcomes (both right, both wrong, one of them right), so that it has width.

    Args:
        difference: in [-1, 1].
    """
    total = clips + 2
    ahead, behind = (clips * max(0.0, sign * difference) + 0.5 for sign in (1, -1))
    mean = (ahead - behind) / total
    half = _Z * math.sqrt((ahead + behind - total * mean**2) / total**2)
    return max(-1.0, mean - half), min(1.0, mean + half)


def estimate(
    statistic: Statistic, clips: int, seed: int, exact: Callable[[float, int], tuple[float, float]] | None = None
) -> Estimate:
    """A statistic and its interval.

    Args:
        exact: gives the interval of a value over so many clips where that is not left to the bootstrap (`wilson`).
    """
    value = point(statistic, clips)
    if exact is not None and math.isfinite(value):
        return Estimate(value=value, ci=exact(min(1.0, max(0.0, value)), clips))
    low, high = (x if math.isfinite(x) else None for x in interval(statistic, clips, seed))
    return Estimate(value=value if math.isfinite(value) else None, ci=(low, high))


def across(scores: Sequence[float]) -> dict[str, Any]:
    """Mean of the scores of several folds, and its 95% interval by Student's t.

    Folds share training clips, so this interval is too narrow if anything; the one over clips is given with it.
    """
    half = float(stdtrit(len(scores) - 1, 0.975)) * float(np.std(scores, ddof=1)) / math.sqrt(len(scores))
    mean = float(np.mean(scores))
    return {"mean": mean, "ci": [mean - half, mean + half]}
